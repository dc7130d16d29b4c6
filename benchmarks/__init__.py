"""The benchmark suite: ``python -m benchmarks.run`` (docs/benchmarks.md explains the protocol and the tables)."""

"""Our side of every case under pytest-benchmark: this commit against an earlier one, on one machine.

    pytest benchmarks --benchmark-autosave                              # before a change
    pytest benchmarks --benchmark-compare --benchmark-compare-fail=median:10%   # after it

Native is not timed here: benchmarks.run does that. A case that the gate refuses fails.
"""

from contextlib import nullcontext

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from . import gate, harness
from .cases import FORWARD, Case


def test_case(benchmark: BenchmarkFixture, case: Case, direction: str) -> None:
    problem = case.build()
    reason = gate.check(case, problem, direction)
    if reason:
        pytest.fail(reason)
    benchmark.group = f"{case.form} {direction}"
    with torch.no_grad() if direction == FORWARD else nullcontext():
        call = harness.make_call(problem.ours, problem, direction)
        call()
        benchmark(call)

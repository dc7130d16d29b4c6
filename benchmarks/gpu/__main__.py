"""``make gpu``: one command on a machine with an NVIDIA GPU, no network needed.

Steps, within nine minutes together: build in place for the card; tests/gpu on it; compute-sanitizer's memcheck and
racecheck over a small grid, where that tool is; the benchmarks. A step that runs out of its time is stopped and said
so; the next one starts all the same. The short table comes last.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOTAL_SECONDS = 9 * 60

# The benchmark suite's name of an op, and the test files that go with it.
TESTS = {
    "layer_norm": ["layer_norm", "dropout_add_layer_norm"],
    "batch_norm": ["batch_norm", "activation"],
    "dropout": ["dropout", "dropout_add", "masked_scale", "dropout_add_layer_norm"],
    "matmul": ["matmul"],
    "linear": ["linear", "activation"],
    "conv2d": ["conv2d", "depthwise"],
    "attention": ["attention"],
}


@dataclass(frozen=True)
class Step:
    """A command with the time it may take."""

    name: str
    command: list[str]
    seconds: float


def steps(only: Sequence[str], quick: bool) -> list[Step]:
    """What runs, in order; the benchmarks get what the others leave (at least their own share)."""
    python = sys.executable
    files = [f"tests/gpu/test_{name}.py" for op in only for name in TESTS[op]] or ["tests/gpu"]
    workers = str(min(8, max(1, (os.cpu_count() or 2) // 2)))
    result = [
        Step("build", [python, "setup.py", "-q", "build_ext", "--inplace"], 150),
        Step("tests", [python, "-m", "pytest", *dict.fromkeys(files), "-q", "-n", workers, "--maxfail=40"], 170),
    ]
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if Path(sanitizer).exists():
        grid = [python, "-m", "benchmarks.gpu.small_grid", *only]
        for tool in ("memcheck", "racecheck"):
            check = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--print-limit", "5", *grid]
            result.append(Step(tool, check, 40))
    suite = [python, "-m", "benchmarks.gpu.suite", *only, *(["--quick"] if quick else [])]
    return [*result, Step("benchmarks", suite, 150)]


def environment(capability: str) -> dict[str, str]:
    """For every step: this checkout's package, the card's architecture alone, CUDA as the tests' device."""
    architecture = capability.replace(".", "") + ("a" if capability == "9.0" else "")
    path = os.pathsep.join(filter(None, [str(ROOT / "python"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "TILEWRIGHT_CUDA_ARCHITECTURES": architecture,
        "TILEWRIGHT_TEST_DEVICE": "cuda",
    }


def run(step: Step, seconds: float, variables: Mapping[str, str]) -> str:
    """The outcome in one word or two."""
    command = [*step.command, "--seconds", str(int(seconds - 20))] if step.name == "benchmarks" else step.command
    process = subprocess.Popen(command, cwd=ROOT, env=dict(variables), start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:  # with the compilers, test workers and sanitized processes that it started: the next step measures
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return "ok" if status == 0 else f"exit status {status}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps; 0 where all were ok, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--only", action="append", default=[], choices=sorted(TESTS), help="this op; may be repeated")
    parser.add_argument("--quick", action="store_true", help="fewer benchmark cases")
    parser.add_argument("--step", action="append", default=[], help="this step only; may be repeated")
    arguments = parser.parse_args(argv)
    import torch  # not tilewright: it may not be built yet

    if not torch.cuda.is_available():
        print("make gpu: torch sees no GPU here (torch must be a CUDA build, on a machine with an NVIDIA GPU)")
        return 2
    variables = environment("{}.{}".format(*torch.cuda.get_device_capability()))
    chosen = [s for s in steps(arguments.only, arguments.quick) if not arguments.step or s.name in arguments.step]
    end, outcomes = time.monotonic() + TOTAL_SECONDS, {}
    for step in chosen:
        begin = time.monotonic()
        left = end - begin - 5
        print(f"== {step.name}: {' '.join(step.command)}", flush=True)
        outcome = run(step, left if step is chosen[-1] else min(step.seconds, left), variables)
        outcomes[step.name] = f"{outcome} ({time.monotonic() - begin:.0f} s)"
    print("\n".join(["", *(f"{name:<12}{outcome}" for name, outcome in outcomes.items())]))
    return int(not all(outcome.startswith("ok") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())

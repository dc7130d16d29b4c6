"""The protocol: native and ours in turn, in one process, under one allocator, after the gate.

- A B A B ...; the ratio native/ours pair by pair, its median; at least 15 pairs and 0.3 s. Figures of two runs are
  never compared: machines are shared and noisy, and what disturbs one side of a pair disturbs the other.
- malloc keeps large blocks (three environment variables that must stand before Python starts, so the suite runs itself
  again with them): else the page faults of a fresh output, the same on both sides, hide every kernel.
- A case whose result is wrong (gate.py) gets the word FAILED and no time.
"""

import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import tilewright

from . import gate
from .cases import FORWARD, TRAIN, Case, Function, Problem

ROOT = Path(__file__).resolve().parent.parent
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
MIN_PAIRS, MIN_SECONDS = 15, 0.3
# A sweep goes up to 1 GB, where one call of native's may take seconds: above so many of them, so few pairs.
LONG_SECONDS, LONG_PAIRS = 0.5, 5
_MIN_SAMPLE = 50e-6  # one sample: long beside the clock's own 0.1 us


def has_malloc_environment() -> bool:
    """Whether this process was started with the allocator settings."""
    return all(os.environ.get(name) == value for name, value in MALLOC.items())


def run_again(module: str, argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run ``python -m module argv`` with more environment; its exit status."""
    package = Path(tilewright.__file__).parent.parent  # the same tilewright as here, wherever it is installed
    path = os.pathsep.join(filter(None, [str(ROOT), str(package), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", module, *argv]
    return subprocess.run(command, env={**os.environ, **environment, "PYTHONPATH": path}).returncode


@dataclass(frozen=True)
class Timing:
    """Medians over the pairs, in seconds; ratio is native/ours."""

    native: float
    ours: float
    ratio: float
    ratio_p20: float
    ratio_p80: float
    pairs: int


def make_call(function: Function, problem: Problem, direction: str) -> Callable[[], object]:
    """The call to time: the function, or it and torch.autograd.grad, on tensors made beforehand."""
    inputs = gate.leaves(problem, direction)
    if direction != TRAIN:
        return lambda: function(*inputs)
    wanted = [inputs[i] for i in problem.wanted()]
    outputs: tuple[Tensor, ...] = gate.as_tuple(function(*inputs))
    gradients = _gradients_like(outputs)

    def call() -> object:
        return torch.autograd.grad(gate.as_tuple(function(*inputs)), wanted, gradients)

    return call


def _gradients_like(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients in the layout of the outputs, as the layer above would give them."""
    values = gate.output_gradients(outputs, outputs[0].dtype)
    return [torch.empty_like(y, requires_grad=False).copy_(g) for y, g in zip(outputs, values, strict=True)]


def release_memory() -> None:
    """Give back what was freed: the suite's malloc keeps it, and the pieces of 1 GB blocks would fill the memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _seconds(call: Callable[[], object], inner: int) -> float:
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - start) / inner


def _warm_seconds(call: Callable[[], object]) -> float:
    """The least of three calls, of two where they are long; the first may pay for fresh memory."""
    least = min(_seconds(call, 1), _seconds(call, 1))
    return least if least > LONG_SECONDS else min(least, _seconds(call, 1))


def time_pairs(native: Callable[[], object], ours: Callable[[], object], *, sweep: bool = False) -> Timing:
    """A B A B until there are enough pairs and enough time; in a sweep fewer pairs of long calls."""
    warm = max(_warm_seconds(call) for call in (native, ours))
    inner = max(1, int(_MIN_SAMPLE / max(warm, 1e-9)))
    pairs = LONG_PAIRS if sweep and warm > LONG_SECONDS else MIN_PAIRS
    samples: list[tuple[float, float]] = []
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + MIN_SECONDS
        while len(samples) < pairs or time.perf_counter() < end:
            samples.append((_seconds(native, inner), _seconds(ours, inner)))
    finally:
        gc.enable()
    ratios = sorted(a / b for a, b in samples)
    return Timing(
        native=statistics.median(a for a, _ in samples),
        ours=statistics.median(b for _, b in samples),
        ratio=statistics.median(ratios),
        ratio_p20=ratios[len(ratios) // 5],
        ratio_p80=ratios[len(ratios) * 4 // 5],
        pairs=len(samples),
    )


def measure(
    case: Case, problem: Problem, direction: str, wrap_native: Callable[[Function], Function] | None = None
) -> tuple[Timing | None, str]:
    """Gate, then time. Returns (timing, '') or (None, reason). wrap_native makes another comparator of native."""
    reason = gate.check(case, case.gate_on() if case.gate_on else problem, direction)
    if reason:
        return None, reason
    if case.size:
        release_memory()
    native = wrap_native(problem.native) if wrap_native else problem.native
    with torch.no_grad() if direction == FORWARD else nullcontext():
        calls = make_call(native, problem, direction), make_call(problem.ours, problem, direction)
        if case.size:
            release_memory()
        return time_pairs(*calls, sweep=case.size > 0), ""

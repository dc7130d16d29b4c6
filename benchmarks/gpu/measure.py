"""The GPU's protocol: device time by replays of CUDA graphs, and the time of a call as Python sees it.

- A graph holds many launches of one side, rotating over copies of the inputs that together exceed the L2 cache three
  times, so that no launch finds its inputs there because of the one before.
- Native's graph and ours are replayed in turn; the medians of at least ten rounds are compared.
- Numbers are normal, never zeros: the card runs faster on zeros.
- Calls from Python are timed in turn too, without graphs, the device synchronised after a run of calls.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cases import FORWARD, Function, Problem
from ..gate import as_tuple, leaves, output_gradients

BACKWARD = "bwd"
L2_TIMES = 3
MIN_ROUNDS, MAX_ROUNDS = 10, 40
ROUNDS_SECONDS = 0.6  # of both sides together, after warming up
GRAPH_SECONDS = 0.01  # device time of one replay, so that its start does not count
MAX_LAUNCHES = 200
PYTHON_CALLS = 30

Call = Callable[[], object]


@dataclass(frozen=True)
class GpuTiming:
    """Medians in seconds. device: one launch within a graph; python: one call from Python."""

    native_device: float
    ours_device: float
    ratio: float
    native_python: float
    ours_python: float
    launches: int
    rounds: int


def _copies(problem: Problem) -> int:
    nbytes = sum(t.numel() * t.element_size() for t in problem.inputs)
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(1, min(64, -(-L2_TIMES * l2 // max(nbytes, 1))))


def _copy(problem: Problem) -> Problem:
    inputs = [t if 0 in t.stride() else t.clone(memory_format=torch.preserve_format) for t in problem.inputs]
    return Problem(inputs, problem.native, problem.ours, problem.work, problem.differentiable, problem.mutable)


def _call(function: Function, problem: Problem, direction: str) -> Call:
    """One launch: the forward, or the gradients alone of a forward that has been computed."""
    if direction == FORWARD:
        inputs = leaves(problem, FORWARD)
        return lambda: function(*inputs)
    inputs = leaves(problem, "fwd+bwd")
    wanted = [inputs[i] for i in problem.wanted()]
    outputs: tuple[Tensor, ...] = as_tuple(function(*inputs))
    values = output_gradients(outputs, outputs[0].dtype)
    gradients = [torch.empty_like(y).copy_(g) for y, g in zip(outputs, values, strict=True)]
    return lambda: torch.autograd.grad(outputs, wanted, gradients, retain_graph=True)


def _capture(calls: list[Call], launches: int) -> torch.cuda.CUDAGraph:
    for call in calls:  # lazy initialisation is not allowed while capturing
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for i in range(launches):
            calls[i % len(calls)]()
    return graph


def device_seconds(run: Call) -> float:
    """Device time of one run, between two events."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def _python_seconds(call: Call) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(PYTHON_CALLS):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / PYTHON_CALLS


def measure(problem: Problem, direction: str) -> GpuTiming:
    """Native and ours in turn, on a stream of their own. The result has been checked before."""
    # Backward runs on the streams of its forward, so all that a graph captures must have begun on the capturing one.
    with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad() if direction == FORWARD else nullcontext():
        problems = [problem, *(_copy(problem) for _ in range(_copies(problem) - 1))]
        native = [_call(p.native, p, direction) for p in problems]
        ours = [_call(p.ours, p, direction) for p in problems]
        return _time(native, ours)


def _time(native: list[Call], ours: list[Call]) -> GpuTiming:
    single = max(min(device_seconds(calls[0]) for _ in range(3)) for calls in (native, ours))
    launches = max(1, min(MAX_LAUNCHES, int(GRAPH_SECONDS / max(single, 1e-6))))
    first, second = _capture(native, launches), _capture(ours, launches)
    samples: list[tuple[float, float]] = []
    for graph in (first, second):
        graph.replay()
    end = time.perf_counter() + ROUNDS_SECONDS
    while len(samples) < MIN_ROUNDS or (time.perf_counter() < end and len(samples) < MAX_ROUNDS):
        samples.append((device_seconds(first.replay), device_seconds(second.replay)))
    calls = [(_python_seconds(native[0]), _python_seconds(ours[0])) for _ in range(5)]
    return GpuTiming(
        native_device=statistics.median(a for a, _ in samples) / launches,
        ours_device=statistics.median(b for _, b in samples) / launches,
        ratio=statistics.median(a / b for a, b in samples),
        native_python=statistics.median(a for a, _ in calls),
        ours_python=statistics.median(b for _, b in calls),
        launches=launches,
        rounds=len(samples),
    )


def copy_bandwidth() -> float:
    """Bytes read and written per second by a device-to-device copy of 2 GiB."""
    source = torch.randn(2**30, dtype=torch.float32).to(torch.bfloat16)
    target = torch.empty_like(source)
    seconds = [device_seconds(lambda: target.copy_(source)) for _ in range(12)]
    return 2 * source.numel() * source.element_size() / statistics.median(seconds[2:])


def matmul_rate(size: int = 8192) -> float:
    """FLOP/s of native's bfloat16 product of two size x size matrices of normal numbers."""
    a, b = (torch.randn(size, size).to(torch.bfloat16) for _ in range(2))
    seconds = [device_seconds(lambda: a @ b) for _ in range(12)]
    return 2.0 * size**3 / statistics.median(seconds[2:])

"""Inputs that are hard on a norm's statistics (offsets, outliers, denormals, sums that cancel, values not finite), and
how a norm's results on them are judged."""

from collections.abc import Callable

import torch
from torch import Tensor

from tilewright.testing import assert_as_accurate

Function = Callable[..., Tensor]
Results = dict[str, Tensor]
# Ours, native and float64 math, all called with the inputs by name, and the gradient of their result.
Problem = tuple[Function, Function, Function, dict[str, Tensor], Tensor]

# What is added to or multiplied with normal numbers, or put among them.
FINITE = (
    "offset",
    "tiny",
    "denormal",
    "huge",
    "outlier first",
    "outlier middle",
    "outlier last",
    "alternating",
    "trend",
)
# The last two stand in the tail of a row of odd width, whatever the width of a vector.
PLACES = {"first": 0, "middle": 0.5, "last": -1, "last but one": -2}
CONSTANTS = (100.7, 0.1, -7e4 / 3, 1e30, 1e-30)


def populations(kind: str, count: int, size: int) -> Tensor:
    """[count, size] float32: each row is one population whose mean and variance a norm takes (a row, a channel)."""
    x = torch.randn(count, size)
    if kind.startswith("outlier"):
        x[:, {"first": 0, "middle": size // 2, "last": -1}[kind.split()[1]]] = 1e6
        return x
    sign = 1 - 2 * (torch.arange(size) % 2)
    return {
        "offset": lambda: x + 1e4,
        "tiny": lambda: x * 1e-30,
        "denormal": lambda: x.clamp(-3, 3) * 3e-39,  # all below 1.2e-38, with 20 bits, so that their mean has some too
        "huge": lambda: x * 1e17,
        "alternating": lambda: x + 1e4 * sign,
        "trend": lambda: x + torch.linspace(0, 1e4, size),  # no part of a row has the mean of the whole
    }[kind]()


def put(x: Tensor, place: str, value: float) -> Tensor:
    """A copy with the value at a place of the second population of [count, size]."""
    x = x.clone()
    position = PLACES[place]
    x[1, int(x.shape[1] * position) if isinstance(position, float) else position] = value
    return x


def as_image(x: Tensor, shape: tuple[int, ...], memory_format: torch.memory_format) -> Tensor:
    """Populations [C, N * spatial] as a tensor [N, C, *spatial] of the shape, in a memory format."""
    n, channels, *spatial = shape
    return x.view(channels, n, *spatial).transpose(0, 1).contiguous(memory_format=memory_format)


def run(function: Function, inputs: dict[str, Tensor], dy: Tensor, dtype: torch.dtype | None = None) -> Results:
    """The output and the gradient of every input."""
    leaves = {name: t.detach().to(dtype or t.dtype).requires_grad_() for name, t in inputs.items()}
    y = function(**leaves)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))
    return {"y": y.detach()} | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}


def check(problem: Callable[[], Problem], size: int, what: str) -> None:
    """The accuracy bar over several draws of a problem together.

    The largest of few errors is a matter of luck, native's too: the largest of several draws is less so. `size` is that
    of a population; large ones, which have many values to be wrong, are drawn less often.
    """
    results: dict[str, list[tuple[Tensor, ...]]] = {}
    for _ in range(8 if size < 50_000 else 3):
        ours, native, reference, inputs, dy = problem()
        found, expected = run(ours, inputs, dy), run(native, inputs, dy)
        exact = run(reference, inputs, dy, torch.float64)
        for name, value in found.items():
            results.setdefault(name, []).append((value, expected[name], exact[name]))
    for name, draws in results.items():
        assert_as_accurate(*(torch.stack(side) for side in zip(*draws, strict=True)), what=f"{what} {name}")


def assert_same_places(ours: Results, native: Results, what: str) -> None:
    """NaN and both Inf exactly where native has them."""
    for name, value in ours.items():
        for kind, found in (("NaN", torch.isnan), ("Inf", torch.isposinf), ("-Inf", torch.isneginf)):
            a, b = found(value), found(native[name])
            same = torch.equal(a, b)
            assert same, f"{what} {name}: {kind} in {a.sum()} places, native in {b.sum()}, together in {(a & b).sum()}"


def assert_same_finite(ours: Results, native: Results, what: str) -> None:
    """Finite exactly where native is; whether Inf meets -Inf, to give NaN, depends on the order of the terms."""
    finite = [{name: torch.where(t.isfinite(), 0, torch.nan) for name, t in side.items()} for side in (ours, native)]
    assert_same_places(*finite, what)


def assert_equal(ours: Tensor, expected: Tensor, what: str) -> None:
    difference = (ours - expected).abs().max().item()
    assert difference == 0, f"{what}: off by {difference}"

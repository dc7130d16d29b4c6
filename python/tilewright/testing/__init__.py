"""What tests, benchmarks and ``tilewright check`` share: ISA control, float64 references, the accuracy bar.

The oracle is float64 math written plainly (:mod:`tilewright.testing.references`), never native float32. The bar: our
error against it is at most twice native's own on the same input.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .. import _C
from . import philox, references

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# The bar never falls below this share of the largest reference value, because native's error on a small or
# ill-conditioned input can be near zero by chance: 16 roundings where sums are in the type itself, 2 where they are in
# float32 and only the result is rounded; 64 in float64, where the reference is no more exact than what it judges.
_FLOOR = {torch.float64: 64 * 2**-53, torch.float32: 16 * 2**-24, torch.float16: 2 * 2**-11, torch.bfloat16: 2 * 2**-8}


def available_isas() -> list[str]:
    """The ISAs this build has and this machine runs, slowest first."""
    return _C.available_isas()


@contextmanager
def force_isa(name: str) -> Iterator[None]:
    """Run the body's tilewright calls on the named ISA.

    They are ``baseline``, ``avx2``, ``avx512``, ``avx512_bf16`` and ``amx_bf16``; :func:`available_isas` gives those of
    this machine.
    """
    before = _C.active_isa()
    _C.force_isa(name)
    try:
        yield
    finally:
        _C.force_isa(before)


def max_error(actual: Tensor, reference: Tensor) -> float:
    """Largest absolute difference from a float64 reference; Inf and NaN must stand in the same places (else inf)."""
    if actual.shape != reference.shape:
        raise AssertionError(f"shape {tuple(actual.shape)}, expected {tuple(reference.shape)}")
    if actual.numel() == 0:
        return 0.0
    difference = (actual.double() - reference.double()).abs()
    same = (actual.double() == reference.double()) | (actual.isnan() & reference.isnan())
    difference = torch.where(same, torch.zeros_like(difference), difference)
    return float("inf") if not difference.isfinite().all() else difference.max().item()


def assert_as_accurate(ours: Tensor, native: Tensor, reference: Tensor, *, factor: float = 2.0, what: str = "") -> None:
    """The accuracy bar: our error against the float64 reference is at most ``factor`` times native's.

    Both errors are the largest absolute one. The bar has a floor (see _FLOOR).
    """
    assert ours.dtype == native.dtype, f"{what}: dtype {ours.dtype}, native gives {native.dtype}"
    assert ours.shape == native.shape, f"{what}: shape {tuple(ours.shape)}, native gives {tuple(native.shape)}"
    finite = reference[reference.isfinite()]
    scale = finite.abs().max().item() if finite.numel() else 0.0
    bar = max(factor * max_error(native, reference), _FLOOR[ours.dtype] * scale)
    error = max_error(ours, reference)
    assert error <= bar, f"{what}: error {error:.3e} against float64, allowed {bar:.3e}"


def error_ratio(ours: Tensor, native: Tensor, reference: Tensor) -> float:
    """Our largest error against the float64 reference, in units of native's (at least half of _FLOOR): 2 is the bar.

    Raises:
        AssertionError: dtype or shape differ from native's.
    """
    assert ours.dtype == native.dtype, f"dtype {ours.dtype}, native gives {native.dtype}"
    assert ours.shape == native.shape, f"shape {tuple(ours.shape)}, native gives {tuple(native.shape)}"
    finite = reference[reference.isfinite()]
    scale = finite.abs().max().item() if finite.numel() else 0.0
    error, unit = max_error(ours, reference), max(max_error(native, reference), _FLOOR[ours.dtype] * scale / 2)
    return error / unit if unit > 0 else (0.0 if error == 0 else float("inf"))


def ops_called(function: Callable[[], object]) -> set[str]:
    """Names of the torch ops that a call runs: proof that a kernel of ours, not native's, did the work."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    return {event.key for event in profiler.key_averages()}


__all__ = [
    "DTYPES",
    "assert_as_accurate",
    "available_isas",
    "error_ratio",
    "force_isa",
    "max_error",
    "ops_called",
    "philox",
    "references",
]

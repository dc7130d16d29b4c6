"""The runner of ``tilewright check``: each public function, forward and gradients, dtype and ISA, against float64.

The measure is the accuracy bar of :mod:`tilewright.testing`: our largest error against the float64 formula as a
multiple of native's on the same input (or of the rounding floor where native's is smaller by chance). Up to 2 passes,
in float32 up to what a case allows: 8 where convolutions are computed by minimal filtering.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import functional
from ._check_cases import ALLOWED, CASES, Case
from ._check_formulas import FORMULAS, NATIVE
from .testing import DTYPES, available_isas, error_ratio, force_isa


@dataclass
class Result:
    """One function on one ISA: the ratio nearest to what its case allows and where it came up, or what went wrong."""

    op: str
    isa: str
    checks: int = 0
    ratio: float = 0.0
    allowed: float = ALLOWED
    worst: str = ""
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether all was compared and lay within the bar."""
        return not self.error and self.checks > 0 and self.ratio <= self.allowed


def public_ops() -> list[str]:
    """All functions of tilewright.functional, and those with cases that it does not have (they fail)."""
    return list(dict.fromkeys([*functional.__all__, *CASES]))


def check_op(op: str, isas: Iterable[str] | None = None) -> list[Result]:
    """Check one function on the ISAs (all that this machine has); never raises for what the function does wrong."""
    results = {isa: Result(op, isa) for isa in isas or available_isas()}
    if op not in CASES:
        return [_failed(result, "no case in _check_cases.CASES") for result in results.values()]
    if op not in functional.__all__:
        return [_failed(result, "not in tilewright.functional") for result in results.values()]
    generator_state = torch.get_rng_state()
    try:
        for case in CASES[op]():
            for dtype in DTYPES:
                _check_case(case, dtype, results)
    finally:
        torch.set_rng_state(generator_state)
    return list(results.values())


def check(ops: Sequence[str], isas: Sequence[str] | None, progress: Callable[[str], None]) -> Iterator[Result]:
    """Check functions one after the other; progress is told each name when it is done."""
    for op in ops:
        yield from check_op(op, isas)
        progress(op)


def _check_case(case: Case, dtype: torch.dtype, results: dict[str, Result]) -> None:
    rounded = [t.to(dtype) if t.is_floating_point() else t for t in case.inputs]
    wide = [t.double() if t.is_floating_point() else t for t in rounded]
    where = f"{case.label}, {str(dtype).removeprefix('torch.')}"
    allowed = case.allowed if dtype is torch.float32 else ALLOWED
    try:
        expected = _run(case, FORMULAS, wide, dtype)
        native = _run(case, NATIVE, rounded, dtype)
    except Exception as error:
        for result in results.values():
            _failed(result, f"{where}: comparison failed: {type(error).__name__}: {error}")
        return
    for isa, result in results.items():
        try:
            with force_isa(isa):
                ours = _run(case, functional, rounded, dtype)
            for name, reference in expected.items():
                ratio = error_ratio(ours[name], native[name], reference)
                result.checks += 1
                if not ratio / allowed <= result.ratio / result.allowed:
                    result.ratio, result.allowed, result.worst = ratio, allowed, f"{where}: {name}"
        except Exception as error:
            _failed(result, f"{where}: {type(error).__name__}: {error}")


def _run(case: Case, f: Any, inputs: list[Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and gradients of one call; the incoming gradient is the same, rounded to dtype, whatever f is."""
    leaves = len(inputs) - case.buffers
    arguments = [t.clone().requires_grad_(i < leaves) for i, t in enumerate(inputs)]
    outputs = case.call(f, *arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    differentiable = [y for y in outputs if y.requires_grad]
    incoming = [torch.randn(y.shape, dtype=torch.float64, generator=generator).to(dtype) for y in differentiable]
    gradients = torch.autograd.grad(
        differentiable, arguments[:leaves], [g.to(y.dtype) for g, y in zip(incoming, differentiable, strict=True)]
    )
    named = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    return named | {f"gradient {i}": g for i, g in enumerate(gradients)}


def _failed(result: Result, error: str) -> Result:
    result.error = result.error or " ".join(error.split())
    return result

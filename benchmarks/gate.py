"""No time without a right result: what a case must pass before it is timed.

The reference is native in float64 on the same inputs. Our error may be at most ``case.accuracy`` times native's own
(2; 8 for convolutions where Winograd is allowed, and then also below 1e-5 relative in norm), with tilewright.testing's
floor of a few roundings. Random functions are compared under the mask that our call drew: it is recovered from a
repeated call with the same seed, native's operations are run with it, and the share of kept elements must fit the
probability. In float64 the reference is native itself, so a sum of n terms may differ by 2 sqrt(n) roundings.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tilewright.testing import max_error

from .cases import FORWARD, TRAIN, Case, Function, Problem

# Relative to the largest value: roundings in the type itself, or of the result alone (16-bit types summed in float32).
_FLOOR = {
    torch.float64: 16 * 2**-53,
    torch.float32: 16 * 2**-24,
    torch.float16: 2 * 2**-11,
    torch.bfloat16: 2 * 2**-8,
}
_PROBABILITY_STEP = 2**-15  # the keep probability is exact to 2^-16, and the scale follows it
_SEED = 20


def leaves(problem: Problem, direction: str, convert: Callable[[Tensor], Tensor] = lambda t: t) -> list[Tensor]:
    """The inputs as one side gets them: own copies of what is overwritten, gradients where they are wanted."""
    wanted = problem.wanted() if direction == TRAIN else ()
    result = []
    for position, tensor in enumerate(problem.inputs):
        t = tensor.clone() if position in problem.mutable else tensor.detach()
        t = convert(t) if t.is_floating_point() else t
        result.append(t.detach().requires_grad_(position in wanted))
    return result


def as_tuple(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One output or several, always as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def output_gradients(outputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The same gradients for every side: normal numbers drawn in float32, rounded to the case's type."""
    device = torch.get_default_device()
    generator = torch.Generator(device).manual_seed(_SEED)
    return [torch.randn(y.shape, generator=generator, device=device).to(dtype).to(y.dtype) for y in outputs]


def _results(
    function: Function,
    problem: Problem,
    direction: str,
    dtype: torch.dtype,
    extra: tuple[Tensor, ...] = (),
    wide: bool = False,
) -> list[Tensor]:
    inputs = leaves(problem, direction, (lambda t: t.double()) if wide else (lambda t: t))
    if direction != TRAIN:
        with torch.no_grad():
            return list(as_tuple(function(*inputs, *extra)))
    outputs = as_tuple(function(*inputs, *extra))
    wanted = [inputs[i] for i in problem.wanted()]
    gradients = torch.autograd.grad(outputs, wanted, output_gradients(outputs, dtype))
    return [*[y.detach() for y in outputs], *gradients]


def _floor(dtype: torch.dtype, terms: int) -> float:
    return max(_FLOOR[dtype], 2 * terms**0.5 * 2**-53 if dtype == torch.float64 else 0)


def _excess(ours: Tensor, native: Tensor, reference: Tensor, case: Case, terms: int, slack: float) -> str:
    """Empty where ours is as accurate as it must be, else one sentence."""
    if ours.shape != native.shape or ours.dtype != native.dtype:
        return f"{tuple(ours.shape)} {ours.dtype}, native gives {tuple(native.shape)} {native.dtype}"
    finite = reference[reference.isfinite()]
    scale = finite.abs().max().item() if finite.numel() else 0.0
    floor = (_floor(ours.dtype, terms) + slack) * scale
    error, bar = max_error(ours, reference), max(2 * max_error(native, reference), floor)
    if error <= bar:
        return ""
    if case.accuracy > 2 and error <= case.accuracy / 2 * bar:
        norm = ((ours.double() - reference).norm() / reference.norm()).item()
        if norm < 1e-5:
            return ""
        return f"relative error in norm {norm:.1e}, allowed 1e-5"
    return f"error {error:.1e}, allowed {bar:.1e}"


def check(case: Case, problem: Problem, direction: str) -> str:
    """Empty where the case's outputs and gradients are right, else why not."""
    extra: tuple[Tensor, ...] = ()
    native, slack = problem.native, 0.0
    try:
        if problem.verify is not None:
            return problem.verify()
        torch.manual_seed(_SEED)
        ours = _results(problem.ours, problem, direction, case.dtype)
        if problem.recover is not None and problem.masked is not None:
            torch.manual_seed(_SEED)
            extra = (problem.recover(*leaves(problem, FORWARD)),)
            native, slack = problem.masked, _PROBABILITY_STEP
    except Exception as error:  # whatever ours raises is the finding
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    expected = _results(native, problem, direction, case.dtype, extra)
    reference = _results(native, problem, direction, case.dtype, extra, wide=True)
    names = [f"output {i}" for i in range(len(ours))]
    if direction == TRAIN:
        gradients = [f"gradient of input {i}" for i in problem.wanted()]
        names[len(ours) - len(gradients) :] = gradients
    for name, a, b, c in zip(names, ours, expected, reference, strict=True):
        reason = _excess(a, b, c, case, problem.terms, slack)
        if reason:
            return f"{name}: {reason}"
    return ""


def check_keep_share(mask: Tensor, p: float) -> None:
    """Raise where the share of kept elements is not 1 - p within five standard deviations."""
    share, n = mask.double().mean().item(), mask.numel()
    allowed = 5 * (p * (1 - p) / n) ** 0.5 + 2**-16
    if abs(share - (1 - p)) > allowed:
        raise AssertionError(f"{share:.4f} of the elements kept, expected {1 - p:.4f} within {allowed:.4f}")

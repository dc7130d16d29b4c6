"""Activations and their slopes to 40 digits: torch.special.ndtr and its like lose digits in the tails."""

from collections.abc import Callable
from functools import cache

import mpmath  # comes with torch, through sympy
import torch
from torch import Tensor


def _relu(x: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    return (x, mpmath.mpf(1)) if x > 0 else (mpmath.mpf(0), mpmath.mpf(0))


def _relu6(x: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    return _relu(x) if x < 6 else (mpmath.mpf(6), mpmath.mpf(0))


def _gelu(x: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    below = mpmath.erfc(-x / mpmath.sqrt(2)) / 2
    return x * below, below + x * mpmath.npdf(x)


def _gelu_tanh(x: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    factor, cube = 2 * mpmath.sqrt(2 / mpmath.pi), mpmath.mpf("0.044715")
    s = 1 / (1 + mpmath.exp(-factor * (x + cube * x**3)))
    return x * s, s + x * s * (1 - s) * factor * (1 + 3 * cube * x**2)


def _silu(x: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    s = 1 / (1 + mpmath.exp(-x))
    return x * s, s + x * s * (1 - s)


_FORMULAS: dict[str, Callable] = {
    "relu": _relu,
    "relu6": _relu6,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
}


@cache
def _exact(activation: str, values: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    with mpmath.workdps(40):
        pairs = [_FORMULAS[activation](mpmath.mpf(value)) for value in values]
    value, slope = ([float(number) for number in column] for column in zip(*pairs, strict=True))
    return torch.tensor(value, dtype=torch.float64), torch.tensor(slope, dtype=torch.float64)


def exact_activation(activation: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """activation(z) and its derivative in z's shape, as correctly rounded float64."""
    value, slope = _exact(activation, tuple(z.detach().flatten().tolist()))
    return value.view(z.shape), slope.view(z.shape)

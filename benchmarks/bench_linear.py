"""linear and linear_act over the layers of transformers and classifiers, from one token to thousands."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF

from .cases import FORWARD, TRAIN, Case, Problem, Work, dims, element_size, randn

MODEL = (
    "Flops: 2 M N K forward, as much again for each of the gradients of input and weight; the activation's own are "
    "not counted. Bytes: input and weight read and output written once forward; backward reads dy twice, input and "
    "weight once, and writes their gradients. Shapes are M x K -> N; all dimensions before the last are M."
)

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
}


def _case(
    shape: str,
    out: int,
    dtype: torch.dtype = torch.float32,
    *,
    activation: str | None = None,
    bias: bool = True,
    **options: Any,
) -> Case:
    """activation: None measures linear, else linear_act against linear followed by it."""
    sizes = dims(shape)

    def native(x: Tensor, *parameters: Tensor) -> Tensor:
        return _ACTIVATIONS[activation or "none"](F.linear(x, *parameters))

    def ours(x: Tensor, *parameters: Tensor) -> Tensor:
        if activation is None:
            return TF.linear(x, *parameters)
        return TF.linear_act(x, *parameters, activation=activation)

    def build() -> Problem:
        k, size = sizes[-1], element_size(dtype)
        x = randn(*sizes, dtype=dtype)
        parameters = [randn(out, k, dtype=dtype, seed=1, scale=k**-0.5)]
        if bias:
            parameters.append(randn(out, dtype=dtype, seed=2))
        m = x.numel() // k
        flops, operands, result = 2.0 * m * k * out, m * k + k * out, m * out
        forward = Work(flops, size * (operands + result))
        train = Work(3 * flops, forward.bytes + size * (2 * operands + 2 * result))
        work = {FORWARD: forward, TRAIN: train}
        return Problem([x, *parameters], native, ours, work, terms=max(m, k, out))

    form = "linear" if activation is None else "linear_act"
    detail = " ".join(filter(None, [activation, "" if bias else "no bias"])) or "contiguous"
    return Case("linear", form, f"{shape}->{out}", build, dtype, detail, **options)


_BF16 = torch.bfloat16

CASES = [
    _case("2048x768", 768, quick=True),
    _case("2048x768", 3072),
    _case("1024x3072", 768),
    _case("512x1024", 1024, quick=True),
    _case("16x128x256", 1024, quick=True),
    _case("8x197x192", 576),
    _case("128x512", 1000, quick=True),
    _case("64x784", 256),
    _case("64x256", 10, quick=True),
    _case("4096x96", 96),
    _case("333x777", 555),
    _case("2048x256", 1024, bias=False),
    _case("1x4096", 4096, directions=(FORWARD,), quick=True),
    _case("8x1024", 4096, directions=(FORWARD,)),
    _case("1x768", 50257, directions=(FORWARD,)),
    _case("2048x768", 768, _BF16, quick=True),
    _case("2048x768", 3072, _BF16),
    _case("128x512", 1000, _BF16),
    _case("1x4096", 4096, _BF16, directions=(FORWARD,)),
    _case("8x1024", 4096, _BF16, directions=(FORWARD,)),
    _case("16x1024", 4096, _BF16, directions=(FORWARD,)),
    _case("4096x768", 768, _BF16),
    _case("2048x1024", 1024, _BF16),
    _case("512x1024", 1024, torch.float64),
    _case("2048x256", 1024, activation="gelu", quick=True),
    _case("1024x768", 3072, activation="gelu"),
    _case("2048x256", 1024, activation="relu", quick=True),
    _case("1024x768", 3072, activation="silu"),
    _case("1024x768", 3072, activation="gelu_tanh"),
    _case("16384x64", 256, activation="gelu"),
    _case("2048x256", 1024, _BF16, activation="gelu"),
]

GPU = [
    _case("8192x4096", 4096, _BF16, quick=True),
    _case("16384x1024", 4096, _BF16),
    _case("8192x768", 3072, _BF16, activation="gelu", quick=True),
    _case("8192x768", 3072, _BF16, activation="relu"),
    _case("8x197x192", 576, _BF16),
    _case("8191x777", 1111, _BF16),
    _case("16x4096", 4096, _BF16, directions=(FORWARD,), quick=True),
    _case("4096x1024", 1024),
]

SWEEP = [_case(f"{2**k}x512", 512, size=2.0**k * 512 * 512) for k in range(0, 13)]

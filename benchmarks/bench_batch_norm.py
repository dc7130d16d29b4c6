"""batch_norm in training and evaluation, with activation and residual, in both memory formats, in 1d to 3d."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF

from .cases import FORWARD, TRAIN, Case, Problem, Work, dims, element_size, in_layout, randn, sweep

MODEL = (
    "Bytes, with n elements of s bytes. Training forward reads x for the statistics, reads it again and writes y: 3 n "
    "s; its backward reads dy and x for the sums, reads both again and writes dx: 5 n s more. Evaluation forward 2 n "
    "s, backward 3 n s more. A residual adds reading it (n s) and writing its gradient (n s); the bits "
    "that batch_norm_act's forward leaves for relu's backward, n / 8 bytes, are not counted. No flops: bound "
    "by memory."
)

_NATIVE: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "relu6": F.relu6}


def _native(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *residual: Tensor,
    training: bool,
    act: str,
) -> Tensor:
    y = F.batch_norm(x, mean, var, weight, bias, training)
    for other in residual:
        y = y + other
    return _NATIVE[act](y) if act else y


def _case(
    shape: str,
    dtype: torch.dtype = torch.float32,
    layout: str = "NCHW",
    *,
    training: bool = True,
    act: str = "",
    residual: bool = False,
    **options: Any,
) -> Case:
    sizes = dims(shape)

    def ours(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *other: Tensor) -> Tensor:
        if not act:
            return TF.batch_norm(x, mean, var, weight, bias, training)
        added = other[0] if other else None
        return TF.batch_norm_act(x, mean, var, weight, bias, training, activation=act, residual=added)

    def build() -> Problem:
        channels = sizes[1]
        x = in_layout(randn(*sizes, dtype=dtype), layout)
        added = [in_layout(randn(*sizes, dtype=dtype, seed=3), layout)] if residual else []
        weight, bias = randn(channels, seed=1), randn(channels, seed=2)
        nbytes = x.numel() * element_size(dtype)
        forward = (3 if training else 2) + residual
        backward = (5 if training else 3) + residual
        return Problem(
            inputs=[x, weight, bias, torch.zeros(channels), torch.ones(channels), *added],
            native=lambda *tensors: _native(*tensors, training=training, act=act),
            ours=ours,
            work={FORWARD: Work(0, forward * nbytes), TRAIN: Work(0, (forward + backward) * nbytes)},
            differentiable=(0, 1, 2, *([5] if residual else [])),
            mutable=(3, 4),
        )

    form = "batch_norm" + ("_act" if act else "")
    detail = f"{layout} {'train' if training else 'eval'}" + (" residual" if residual else "")
    detail += " relu6" if act == "relu6" else ""
    return Case("batch_norm", form, shape, build, dtype, detail, **options)


_BF16 = torch.bfloat16

CASES = [
    _case("32x64x56x56", quick=True),
    _case("32x64x56x56", layout="NHWC", quick=True),
    _case("32x64x56x56", _BF16),
    _case("32x64x56x56", _BF16, "NHWC", quick=True),
    _case("32x256x14x14", quick=True),
    _case("32x256x14x14", layout="NHWC", quick=True),
    _case("8x512x7x7"),
    _case("8x512x7x7", layout="NHWC"),
    _case("8x64x112x112"),
    _case("2x32x224x224"),
    _case("64x16x28x28"),
    _case("16x96x13x13"),
    _case("256x512", layout="NC", quick=True),
    _case("64x32x1000", layout="NCL"),
    _case("4x32x16x32x32", layout="NCDHW"),
    _case("32x64x56x56", training=False, quick=True),
    _case("32x256x14x14", training=False),
    _case("32x64x56x56", layout="NHWC", training=False),
    _case("1x64x56x56", training=False),
    _case("32x64x56x56", act="relu", quick=True),
    _case("32x64x56x56", layout="NHWC", act="relu", quick=True),
    _case("32x256x14x14", act="relu"),
    _case("32x256x14x14", act="relu", residual=True, quick=True),
    _case("32x256x14x14", layout="NHWC", act="relu", residual=True),
    _case("32x256x14x14", _BF16, "NHWC", act="relu", residual=True),
    _case("8x144x56x56", act="relu6"),
    _case("8x144x56x56", layout="NHWC", act="relu6", quick=True),
    _case("8x384x14x14", layout="NHWC", act="relu6"),
    _case("32x64x56x56", training=False, act="relu"),
    _case("8x256x56x56", training=False, act="relu", residual=True),
]

GPU = [
    _case("128x64x56x56", _BF16, "NHWC", quick=True),
    _case("128x256x14x14", _BF16, "NHWC"),
    _case("64x64x112x112", _BF16, "NHWC"),
    _case("128x64x56x56", _BF16, quick=True),
    _case("128x256x14x14", _BF16),
    _case("8x512x7x7", _BF16),
    _case("128x64x56x56", layout="NHWC"),
    _case("128x256x56x56", _BF16, "NHWC", act="relu", residual=True, quick=True),
    _case("128x256x56x56", _BF16, act="relu", residual=True),
    _case("128x64x56x56", _BF16, "NHWC", training=False),
    _case("8192x1024", _BF16, "NC"),
]

# Images that grow from 2x2 to 32x32 pixels, then more and more of them.
_SHAPES = [*(f"1x64x{2**k}x{2**k}" for k in range(1, 6)), *(f"{4**k}x64x32x32" for k in range(1, 7))]


def _sweep(layout: str, *, fused: bool) -> list[Case]:
    def make(shape: str, **options: Any) -> Case:
        return _case(shape, layout=layout, act="relu" if fused else "", residual=fused, **options)

    return sweep(make, _SHAPES)


SWEEP = [case for fused in (False, True) for layout in ("NCHW", "NHWC") for case in _sweep(layout, fused=fused)]

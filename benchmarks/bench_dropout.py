"""dropout, dropout_add, dropout_add_layer_norm and masked_scale: from a thousand elements to beyond the cache."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF

from .cases import FORWARD, SWEEP_BYTES, TRAIN, Case, Problem, Work, dims, element_size, in_layout, randn, sweep
from .gate import check_keep_share

MODEL = (
    "Bytes, with n elements of s bytes. dropout: x and y forward, dy and dx backward, 2 n s each (the mask's n / 8 "
    "bytes of bits are not counted). dropout_add: a third operand forward, 3 n s; backward 2 n s, the residual's "
    "gradient being dy itself. dropout_add_layer_norm: x and residual read, y written, 3 n s; with gradients the sum "
    "is kept, read with dy, and two gradients written: 8 n s in all. masked_scale: x, y and a mask of one byte each "
    "way. No flops: bound by memory."
)
P = 0.1


def _scaled(x: Tensor, keep: Tensor) -> Tensor:
    return x * keep.to(x.dtype) * (1 / (1 - P))


def _from_output(y: Tensor) -> Tensor:
    """The keep-mask where an input without zeros was dropped."""
    keep = y != 0
    check_keep_share(keep, P)
    return keep


def _case(
    form: str,
    shape: str,
    dtype: torch.dtype,
    layout: str,
    make: Callable[[list[int]], Problem],
    **options: Any,
) -> Case:
    return Case("dropout", form, shape, lambda: make(dims(shape)), dtype, layout, **options)


def _tensor(sizes: list[int], dtype: torch.dtype, layout: str, seed: int = 0) -> Tensor:
    """Normal numbers without zeros, so that a zero in the output means dropped."""
    x = randn(*sizes, dtype=dtype, seed=seed)
    return in_layout(x.masked_fill_(x == 0, 1), layout)


def _work(x: Tensor, forward: float, train: float, mask: int = 0) -> dict[str, Work]:
    n, s = x.numel(), element_size(x.dtype)
    return {FORWARD: Work(0, n * (forward * s + mask)), TRAIN: Work(0, n * (train * s + 2 * mask))}


def _dropout(shape: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous", **options: Any) -> Case:
    def make(sizes: list[int]) -> Problem:
        x = _tensor(sizes, dtype, layout)
        return Problem(
            [x],
            native=lambda x: F.dropout(x, P, True),
            ours=lambda x: TF.dropout(x, P, True),
            work=_work(x, 2, 4),
            masked=_scaled,
            recover=lambda x: _from_output(TF.dropout(x, P, True)),
        )

    return _case("dropout", shape, dtype, layout, make, **options)


def _dropout_add(shape: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous", **options: Any) -> Case:
    def make(sizes: list[int]) -> Problem:
        x = _tensor(sizes, dtype, layout)
        return Problem(
            [x, _tensor(sizes, dtype, layout, seed=1)],
            native=lambda x, residual: residual + F.dropout(x, P, True),
            ours=lambda x, residual: TF.dropout_add(x, residual, P, True),
            work=_work(x, 3, 5),
            masked=lambda x, residual, keep: residual + _scaled(x, keep),
            recover=lambda x, residual: _from_output(TF.dropout_add(x, torch.zeros_like(residual), P, True)),
        )

    return _case("dropout_add", shape, dtype, layout, make, **options)


def _dropout_add_layer_norm(shape: str, dtype: torch.dtype = torch.float32, **options: Any) -> Case:
    def make(sizes: list[int]) -> Problem:
        cols = (sizes[-1],)
        x = _tensor(sizes, dtype, "contiguous")
        parameters = [randn(*cols, dtype=dtype, seed=2), randn(*cols, dtype=dtype, seed=3)]

        def recover(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            zeros = torch.zeros_like(residual)
            _, total = TF.dropout_add_layer_norm(x, zeros, cols, weight, bias, p=P, training=True, prenorm=True)
            return _from_output(total)

        return Problem(
            [x, _tensor(sizes, dtype, "contiguous", seed=1), *parameters],
            native=lambda x, r, w, b: F.layer_norm(r + F.dropout(x, P, True), cols, w, b),
            ours=lambda x, r, w, b: TF.dropout_add_layer_norm(x, r, cols, w, b, p=P, training=True),
            work=_work(x, 3, 8),
            masked=lambda x, r, w, b, keep: F.layer_norm(r + _scaled(x, keep), cols, w, b),
            recover=recover,
        )

    return _case("dropout_add_layer_norm", shape, dtype, "contiguous", make, **options)


def _masked_scale(shape: str, dtype: torch.dtype = torch.float32, **options: Any) -> Case:
    def make(sizes: list[int]) -> Problem:
        x = _tensor(sizes, dtype, "contiguous")
        keep = randn(*sizes, seed=1) > -1.2816  # nine in ten
        return Problem(
            [x, keep],
            native=lambda x, keep: x * keep * (1 / (1 - P)),
            ours=lambda x, keep: TF.masked_scale(x, keep, 1 / (1 - P)),
            work=_work(x, 2, 4, mask=1),
        )

    return _case("masked_scale", shape, dtype, "contiguous", make, **options)


_BF16 = torch.bfloat16

CASES = [
    _dropout("1024", quick=True),
    _dropout("65536"),
    _dropout("1024x1024", quick=True),
    _dropout("1024x1024", _BF16, quick=True),
    _dropout("16x1024x1024"),
    _dropout("2048x256"),
    _dropout("777x333"),
    _dropout("32x64x56x56", layout="NHWC"),
    _dropout("512x512", layout="transposed", quick=True),
    _dropout_add("16x128x256", quick=True),
    _dropout_add("16x512x768", quick=True),
    _dropout_add("16x512x768", _BF16),
    _dropout_add("777x333"),
    _dropout_add_layer_norm("16x128x256", quick=True),
    _dropout_add_layer_norm("16x512x768", quick=True),
    _dropout_add_layer_norm("16x512x768", _BF16),
    _dropout_add_layer_norm("777x333"),
    _masked_scale("1024x1024", quick=True),
    _masked_scale("1024x1024", _BF16),
    _masked_scale("16x1024x1024"),
]

GPU = [
    _dropout("16384x4096", _BF16, quick=True),
    _dropout("16384x4096"),
    _dropout("1024x1024", _BF16),
    _dropout("64x256x56x56", _BF16, layout="NHWC"),
    _dropout_add("16384x4096", _BF16, quick=True),
    _dropout_add_layer_norm("16384x4096", _BF16, quick=True),
    _dropout_add_layer_norm("8192x1024", _BF16),
    _masked_scale("16384x4096", _BF16, quick=True),
    _dropout("4096", _BF16, quick=True),
]

SWEEP = [
    *sweep(_dropout, [str(size // 4) for size in SWEEP_BYTES]),
    *sweep(_dropout_add_layer_norm, [*(f"{4**k}x768" for k in range(9)), "349525x768"]),  # from one row
]

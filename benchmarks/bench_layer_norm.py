"""layer_norm over widths of models, short and long rows, odd sizes and layouts."""

from typing import Any

import torch
import torch.nn.functional as F

import tilewright.functional as TF

from .cases import FORWARD, TRAIN, Case, Problem, Work, dims, element_size, randn, sweep

MODEL = (
    "Bytes, with n elements of s bytes: forward reads x and writes y, 2 n s; forward+backward adds reading dy and x "
    "and writing dx, 5 n s. Statistics, weight and bias are small beside them and not counted. No flops: the op is "
    "bound by memory."
)


def _layer_norm(shape: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous", **options: Any) -> Case:
    """shape: 'rowsxcols', or more dimensions of which the last is normalised."""
    sizes = dims(shape)
    affine = "plain" not in layout

    def build() -> Problem:
        cols = sizes[-1]
        x = randn(*sizes, dtype=dtype)
        if "transposed" in layout:
            x = x.transpose(0, 1).contiguous().transpose(0, 1)
        parameters = [randn(cols, dtype=dtype, seed=1), randn(cols, dtype=dtype, seed=2)] if affine else []
        nbytes = x.numel() * element_size(dtype)
        return Problem(
            inputs=[x, *parameters],
            native=lambda x, *wb: F.layer_norm(x, (cols,), *wb),
            ours=lambda x, *wb: TF.layer_norm(x, (cols,), *wb),
            work={FORWARD: Work(0, 2 * nbytes), TRAIN: Work(0, 5 * nbytes)},
        )

    return Case("layer_norm", "layer_norm", shape, build, dtype, layout, **options)


_BF16 = torch.bfloat16

CASES = [
    _layer_norm("4096x768", quick=True),
    _layer_norm("4096x768", _BF16, quick=True),
    _layer_norm("8192x1024"),
    _layer_norm("8192x1024", _BF16),
    _layer_norm("2048x4096", quick=True),
    _layer_norm("2048x4096", _BF16),
    _layer_norm("16x197x192", quick=True),
    _layer_norm("16x197x192", _BF16),
    _layer_norm("100352x96", quick=True),
    _layer_norm("1000x333", quick=True),
    _layer_norm("1000x333", _BF16),
    _layer_norm("64x65536"),
    _layer_norm("8x1024", quick=True),
    _layer_norm("1x768"),
    _layer_norm("1x4096", _BF16),
    _layer_norm("16384x16"),
    _layer_norm("32x128x512", layout="transposed", quick=True),
    _layer_norm("4096x768", layout="plain"),
]

GPU = [
    _layer_norm("2048x4096", _BF16),
    _layer_norm("16384x1024", _BF16),
    _layer_norm("16384x4096", _BF16, quick=True),
    _layer_norm("8192x8192", _BF16, quick=True),
    _layer_norm("1024x12288", _BF16),
    _layer_norm("4096x16384", _BF16),
    _layer_norm("131072x128", _BF16, quick=True),
    _layer_norm("16384x4096"),
    _layer_norm("256x131072", _BF16),
    _layer_norm("8192x1023", _BF16),
    _layer_norm("32x768", _BF16, quick=True),
]

_COLS = [4**k for k in range(11)]

SWEEP = [  # the least is 3 KB, one row
    *sweep(_layer_norm, [*(f"{4**k}x768" for k in range(9)), "349525x768"]),
    *sweep(_layer_norm, [f"{2**22 // cols}x{cols}" for cols in _COLS], "columns (16 MB)", _COLS),
]

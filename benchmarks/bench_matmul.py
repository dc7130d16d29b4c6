"""matmul, bmm and baddbmm: attention-like batches, square and thin products, transposed and stride-0 operands."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tilewright.functional as TF

from .cases import FORWARD, TRAIN, Case, Problem, Work, dims, element_size, in_layout, randn

MODEL = (
    "Flops: 2 B M N K forward, and as much for each of the two gradients. Bytes: both operands read and the result "
    "written once forward; backward reads dy twice and each operand once, and writes two gradients. Shapes are "
    "BxMxKxN, or MxKxN."
)


def _work(b: int, m: int, k: int, n: int, size: int) -> dict[str, Work]:
    flops = 2.0 * b * m * n * k
    operands, result = b * (m * k + k * n), b * m * n
    forward = Work(flops, size * (operands + result))
    return {FORWARD: forward, TRAIN: Work(3 * flops, forward.bytes + size * (2 * operands + 2 * result))}


def _case(
    form: str, shape: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous", **options: Any
) -> Case:
    """layout: contiguous; 'first transposed' or 'second transposed' (a view); 'second shared' (stride 0)."""
    *batch, m, k, n = dims(shape)

    def build() -> Problem:
        a = randn(*batch, m, k, dtype=dtype)
        b = randn(*batch, k, n, dtype=dtype, seed=1)
        a = in_layout(a, "transposed") if layout == "first transposed" else a
        b = in_layout(b, "transposed") if layout == "second transposed" else b
        b = b[:1].expand(*batch, k, n) if layout == "second shared" else b
        added = [randn(*batch, m, n, dtype=dtype, seed=2)] if form == "baddbmm" else []
        functions: dict[str, Callable[..., Tensor]] = {"bmm": TF.bmm, "matmul": TF.matmul, "baddbmm": TF.baddbmm}
        ours, native = functions[form], getattr(torch, form)
        work = _work(batch[0] if batch else 1, m, k, n, element_size(dtype))
        return Problem([*added, a, b], native, ours, work, terms=max(m, k, n))

    return Case("matmul", form, shape, build, dtype, layout, **options)


_BF16, _FP64 = torch.bfloat16, torch.float64

CASES = [
    _case("bmm", "64x128x64x128", quick=True),
    _case("bmm", "512x32x32x32", quick=True),
    _case("bmm", "96x197x64x197", quick=True),
    _case("bmm", "16x512x64x512"),
    _case("bmm", "512x20x20x20", quick=True),
    _case("bmm", "2048x8x8x8"),
    _case("bmm", "96x197x64x197", layout="second transposed", quick=True),
    _case("bmm", "96x64x197x197", layout="first transposed"),
    _case("bmm", "32x64x256x64", layout="second shared"),
    _case("bmm", "64x1x128x512"),
    _case("bmm", "12x333x77x111"),
    _case("bmm", "64x128x64x128", _BF16, quick=True),
    _case("bmm", "96x197x64x197", _BF16),
    _case("bmm", "64x128x128x128", _BF16),
    _case("bmm", "16x512x64x512", _BF16),
    _case("bmm", "8x1024x1024x64", _BF16),
    _case("bmm", "512x20x20x20", _BF16, quick=True),
    _case("bmm", "2048x8x8x8", _BF16),
    _case("bmm", "64x16x16x16", _BF16),
    _case("bmm", "512x16x32x32", layout="second transposed"),
    _case("bmm", "512x16x32x32", _BF16, layout="second transposed"),
    _case("bmm", "64x4x1024x64"),
    _case("bmm", "64x128x64x128", _FP64),
    _case("baddbmm", "64x128x64x128", quick=True),
    _case("baddbmm", "96x49x32x49"),
    _case("matmul", "128x128x128", quick=True),
    _case("matmul", "256x256x256"),
    _case("matmul", "512x512x512", quick=True),
    _case("matmul", "1024x1024x1024"),
    _case("matmul", "1000x1000x1000"),
    _case("matmul", "512x512x512", layout="second transposed"),
    _case("matmul", "512x512x512", layout="first transposed"),
    _case("matmul", "4096x64x64"),
    _case("matmul", "64x4096x64", quick=True),
    _case("matmul", "16x1024x4096"),
    _case("matmul", "1x1024x4096", directions=(FORWARD,), quick=True),
    _case("matmul", "37x41x43"),
    _case("matmul", "512x512x512", _BF16, quick=True),
    _case("matmul", "1024x1024x1024", _BF16),
    _case("matmul", "8x1024x1024", _BF16),
    _case("matmul", "8x256x256x256", layout="contiguous"),
    _case("matmul", "256x256x256", _FP64),
    _case("matmul", "512x512x512", _FP64, layout="second transposed"),
    _case("matmul", "1000x1000x1000", _FP64),
    _case("matmul", "64x4096x64", _FP64),
]

GPU = [
    _case("matmul", "8192x8192x8192", _BF16, quick=True),
    _case("matmul", "4096x4096x4096", _BF16),
    _case("matmul", "2048x2048x2048", _BF16, quick=True),
    _case("matmul", "4096x4096x4096", _BF16, layout="second transposed"),
    _case("matmul", "4096x4096x4096", _BF16, layout="first transposed"),
    _case("bmm", "96x512x64x512", _BF16, quick=True),
    _case("bmm", "512x32x32x32", _BF16, quick=True),
    _case("bmm", "96x197x64x197", _BF16),
    _case("bmm", "12x333x77x111", _BF16),
    _case("bmm", "64x512x256x64", _BF16, layout="second shared"),
    _case("matmul", "1x4096x4096", _BF16, directions=(FORWARD,)),
    _case("matmul", "64x65536x64", _BF16),
    _case("matmul", "2048x2048x2048"),
]

# Powers of two, primes beside them, and what lies between.
_SIZES = (1, 2, 4, 8, 13, 16, 24, 31, 32, 48, 61, 64, 96, 127, 128, 192, 256, 257, 384, 509, 512, 768, 1021, 1024)
_LONG = (*_SIZES, 2039, 2048, 4093, 4096)


def _line(shape: str, sizes: tuple[int, ...], axis: str, dtype: torch.dtype = torch.float32) -> list[Case]:
    """matmul over one of its sizes, n in `shape`."""
    return [_case("matmul", shape.replace("n", str(n)), dtype, directions=(FORWARD,), size=n, axis=axis) for n in sizes]


SWEEP = [
    *_line("nxnxn", _SIZES, "M = N = K"),
    *_line("nx512x512", _LONG, "M (N = K = 512)"),
    *_line("512x512xn", _LONG, "N (M = K = 512)"),
    *_line("512xnx512", _LONG, "K (M = N = 512)"),
    *_line("nxnxn", _SIZES, "M = N = K, bfloat16", _BF16),
]

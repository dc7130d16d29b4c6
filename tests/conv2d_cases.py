"""Shapes of convolutions, and what the tests do with each: run it, compare it with float64 and with native."""

import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import assert_as_accurate, references

FORMATS = {"planes": torch.contiguous_format, "channels_last": torch.channels_last}

# Input, weight, options.
Shapes = tuple[tuple[int, ...], tuple[int, ...], dict]

# By name. The sizes are around tiles and vectors, and those that other libraries got wrong.
CASES: dict[str, Shapes] = {
    "one of everything": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "3x3": ((2, 5, 9, 11), (7, 5, 3, 3), {"padding": 1}),
    "tile and panel tails": ((2, 33, 13, 9), (37, 33, 3, 3), {"padding": 1}),
    "several blocks of k, filters and pixels": ((2, 40, 16, 15), (270, 40, 3, 3), {"padding": 1}),
    "several blocks of k, filters and pixels, dilated": (
        (2, 40, 16, 15),
        (270, 40, 3, 3),
        {"padding": 2, "dilation": 2},
    ),
    "minimal filtering, tails": ((4, 33, 13, 15), (37, 33, 3, 3), {"padding": 1}),
    "minimal filtering, padding 3": ((2, 24, 14, 15), (25, 24, 3, 3), {"padding": 3}),
    "minimal filtering, no padding": ((3, 32, 16, 17), (32, 32, 3, 3), {}),
    "minimal filtering, many tiles": ((16, 24, 14, 14), (24, 24, 3, 3), {"padding": 1}),
    "minimal filtering, one row of many tiles": ((1, 24, 4, 350), (24, 24, 3, 3), {"padding": 1}),
    "minimal filtering, many small images": ((90, 24, 5, 5), (24, 24, 3, 3), {"padding": 1}),
    "minimal filtering of 4 x 4, many tiles": ((8, 24, 38, 39), (25, 24, 3, 3), {"padding": 1}),
    "minimal filtering of 4 x 4, many channels": ((4, 100, 15, 14), (97, 100, 3, 3), {"padding": 1}),
    "minimal filtering of 4 x 4, many filters": ((2, 70, 19, 26), (290, 70, 3, 3), {"padding": 1}),
    "minimal filtering in groups": ((8, 52, 26, 27), (50, 26, 3, 3), {"padding": 1, "groups": 2}),
    "minimal filtering in groups, few tiles": ((5, 52, 14, 15), (50, 26, 3, 3), {"padding": 1, "groups": 2}),
    "minimal filtering of 4 x 4, padding 3": ((6, 24, 14, 15), (25, 24, 3, 3), {"padding": 3}),
    "minimal filtering, 5x5": ((8, 26, 15, 14), (33, 26, 5, 5), {"padding": 2}),
    "minimal filtering, 5x5, many tiles": ((8, 24, 20, 20), (25, 24, 5, 5), {"padding": 2}),
    "minimal filtering, 5x5, padding 5": ((2, 24, 9, 9), (25, 24, 5, 5), {"padding": 5}),
    "minimal filtering, 5x5, many channels": ((2, 96, 18, 18), (90, 96, 5, 5), {}),
    "minimal filtering, many channels": ((2, 144, 14, 14), (150, 144, 3, 3), {"padding": 1}),
    "minimal filtering, dilation 2": ((4, 33, 27, 30), (37, 33, 3, 3), {"padding": 2, "dilation": 2}),
    "minimal filtering, dilation 2, few tiles": ((4, 34, 21, 19), (33, 34, 3, 3), {"padding": 2, "dilation": 2}),
    "minimal filtering, dilations 2 and 3": (
        (3, 36, 32, 41),
        (34, 36, 3, 3),
        {"padding": (1, 4), "dilation": (2, 3)},
    ),
    "minimal filtering, 5x5 of dilation 2": ((4, 33, 26, 27), (35, 33, 5, 5), {"padding": 4, "dilation": 2}),
    "minimal filtering, dilation 2, many channels": ((4, 100, 30, 29), (97, 100, 3, 3), {"padding": 2, "dilation": 2}),
    "dilation beyond the image": ((2, 20, 9, 10), (18, 20, 3, 3), {"padding": 8, "dilation": 8}),
    "large plane": ((1, 3, 40, 50), (20, 3, 3, 3), {"padding": 1}),
    "7x7 images": ((3, 20, 7, 7), (18, 20, 3, 3), {"padding": 1}),
    "5x5 kernel on one channel": ((4, 1, 12, 12), (6, 1, 5, 5), {}),
    "stem": ((2, 3, 31, 33), (16, 3, 7, 7), {"padding": 3, "stride": 2}),
    "1x1": ((2, 16, 6, 7), (33, 16, 1, 1), {}),
    "1x1 on large planes": ((2, 70, 30, 33), (40, 70, 1, 1), {}),
    "1x1 of a power of two": ((1, 256, 4, 4), (16, 256, 1, 1), {}),
    "1x1 stride 2, few channels": ((2, 8, 9, 10), (32, 8, 1, 1), {"stride": 2}),
    "1x1 with padding": ((1, 4, 5, 5), (3, 4, 1, 1), {"padding": 1}),
    "1x1 stride 2": ((2, 40, 9, 10), (70, 40, 1, 1), {"stride": 2}),
    "1x1 in groups": ((2, 48, 10, 11), (36, 16, 1, 1), {"groups": 3}),
    "1x1 on short planes": ((3, 33, 7, 7), (40, 33, 1, 1), {}),
    "panels of three vectors": ((2, 32, 9, 10), (96, 32, 3, 3), {"padding": 1, "stride": 2}),
    "panels of four vectors and of three": ((1, 20, 9, 10), (110, 20, 3, 2), {"padding": 1}),
    "weights beyond the cache": ((2, 256, 7, 6), (384, 256, 3, 3), {"padding": 1}),
    "channels that do not fill a step": ((1, 50, 12, 30), (40, 50, 3, 3), {"padding": 1}),
    "strips of stride 2": ((2, 32, 21, 40), (48, 32, 3, 3), {"padding": 1, "stride": 2}),
    "strips of stride 2 and 1": ((1, 32, 20, 31), (33, 32, 3, 3), {"padding": 1, "stride": (2, 1)}),
    "strips of large images": ((2, 20, 24, 25), (18, 20, 3, 3), {"padding": 1}),
    "strips in two blocks": ((1, 17, 40, 44), (33, 17, 3, 2), {"padding": 1}),
    "strips of large images, stride 2": ((2, 40, 41, 43), (36, 40, 3, 3), {"padding": 1, "stride": 2}),
    "strips of large images, dilated": ((1, 34, 26, 27), (36, 34, 3, 3), {"padding": 2, "dilation": 2}),
    "strips of many channels and filters": ((1, 150, 20, 24), (264, 150, 3, 3), {"padding": 1}),
    "three parts, 1x1": ((2, 150, 17, 19), (100, 150, 1, 1), {}),
    "three parts, 1x1 with stride 2": ((3, 170, 29, 30), (96, 170, 1, 1), {"stride": 2}),
    "three parts, all passes of 1x1": ((3, 420, 14, 15), (400, 420, 1, 1), {}),
    "three parts, 1x1 of 1x1 images": ((600, 128, 1, 1), (130, 128, 1, 1), {}),
    "three parts, 1x1 of 5x5 images": ((30, 260, 5, 5), (230, 260, 1, 1), {}),
    "three parts, 1x1 of short images, stride 2": ((16, 400, 13, 13), (420, 400, 1, 1), {"stride": 2}),
    "three parts, 1x1 in groups": ((3, 90, 23, 17), (74, 45, 1, 1), {"groups": 2}),
    "three parts, patches that do not overlap": ((3, 3, 229, 210), (130, 3, 16, 16), {"stride": 16}),
    "three parts, dilated": ((2, 66, 24, 23), (65, 66, 3, 3), {"padding": 2, "dilation": 2}),
    "three parts, stride 2": ((2, 70, 35, 33), (250, 70, 3, 3), {"padding": 1, "stride": 2}),
    "three parts, strides 2 and 1, few images": ((1, 64, 45, 37), (130, 64, 3, 2), {"padding": 1, "stride": (2, 1)}),
    "three parts in groups": ((2, 96, 34, 37), (140, 48, 5, 5), {"padding": 2, "stride": 2, "groups": 2}),
    "joined groups of large images": ((1, 64, 22, 23), (64, 16, 3, 3), {"padding": 1, "groups": 4}),
    "uneven strides": ((2, 4, 13, 17), (5, 4, 3, 4), {"padding": (1, 2), "stride": (3, 2)}),
    "dilation 3": ((2, 4, 15, 16), (5, 4, 3, 3), {"padding": 3, "dilation": 3}),
    "dilation and stride": ((2, 4, 15, 16), (5, 4, 3, 2), {"padding": 2, "dilation": (2, 3), "stride": (2, 2)}),
    "common factor of dilation and stride": ((1, 3, 17, 17), (4, 3, 3, 3), {"dilation": 4, "stride": 6, "padding": 4}),
    "stride beyond the kernel": ((2, 3, 14, 15), (4, 3, 2, 2), {"stride": 5}),
    "patches that do not overlap": ((2, 3, 17, 30), (20, 3, 4, 4), {"stride": 4}),
    "patches that do not overlap, one channel": ((2, 1, 12, 15), (5, 1, 2, 3), {"stride": (2, 3)}),
    "kernel beyond the image": ((2, 3, 2, 2), (4, 3, 5, 5), {"padding": 2}),
    "padding beyond the kernel": ((1, 2, 4, 5), (3, 2, 1, 2), {"padding": 3}),
    "wide row kernel": ((2, 3, 1, 40), (4, 3, 1, 9), {"padding": (0, 4)}),
    "groups": ((2, 12, 9, 9), (18, 4, 3, 3), {"padding": 1, "groups": 3}),
    "groups of 24": ((2, 48, 8, 8), (24, 24, 3, 3), {"padding": 1, "groups": 2}),
    "groups of many filters": ((1, 8, 9, 9), (40, 4, 3, 3), {"padding": 1, "groups": 2, "stride": 2}),
    "joined groups of 16": ((2, 64, 12, 13), (64, 16, 3, 3), {"padding": 1, "groups": 4}),
    "two groups of 16 channels": ((1, 32, 9, 24), (96, 16, 3, 3), {"padding": 1, "groups": 2}),
    "two joined groups": ((1, 32, 9, 24), (32, 16, 3, 3), {"padding": 1, "groups": 2}),
    "one row of taps, long": ((1, 1, 1, 300), (20, 1, 1, 64), {"stride": (1, 4)}),
    "joined groups of 4": ((1, 64, 9, 20), (64, 4, 3, 3), {"padding": 1, "groups": 16}),
    "joined groups of stride 2": ((2, 64, 13, 24), (32, 8, 3, 3), {"padding": 1, "groups": 8, "stride": 2}),
    "groups of 4, a tail": ((2, 20, 9, 19), (20, 4, 3, 3), {"padding": 1, "groups": 5}),
    "groups of 4, many rows of taps": ((1, 24, 7, 30), (24, 4, 5, 3), {"padding": (2, 1), "groups": 6}),
    "groups of 8, stride 2": ((2, 40, 13, 18), (40, 8, 3, 3), {"padding": 1, "groups": 5, "stride": 2}),
    "groups of 8, stride 1 and 2": ((2, 48, 12, 17), (48, 8, 3, 2), {"padding": 1, "groups": 6, "stride": (1, 2)}),
    "few filters": ((2, 20, 9, 19), (5, 20, 3, 3), {"padding": 1}),
    "few channels and strides": ((2, 5, 13, 19), (40, 5, 5, 5), {"padding": 2, "stride": 2}),
    "24 groups": ((2, 72, 6, 6), (48, 3, 3, 3), {"padding": 1, "groups": 24}),
    "depthwise": ((2, 24, 10, 9), (24, 1, 3, 3), {"padding": 1, "groups": 24}),
    "depthwise stride 2": ((2, 24, 11, 10), (24, 1, 3, 3), {"padding": 1, "groups": 24, "stride": 2}),
    "depthwise stride 2, even kernel": (
        (2, 20, 13, 37),
        (20, 1, 4, 2),
        {"padding": (1, 0), "groups": 20, "stride": 2},
    ),
    "depthwise stride 2, dilation 3": (
        (2, 18, 17, 22),
        (18, 1, 3, 3),
        {"padding": 3, "groups": 18, "stride": 2, "dilation": 3},
    ),
    "depthwise stride 2 in row blocks": ((1, 3, 190, 151), (3, 1, 5, 5), {"padding": 2, "groups": 3, "stride": 2}),
    "depthwise stride 2, one row": ((2, 18, 1, 40), (18, 1, 3, 3), {"padding": 1, "groups": 18, "stride": 2}),
    "depthwise 5x5 dilated": ((2, 17, 14, 13), (17, 1, 5, 5), {"padding": 4, "groups": 17, "dilation": 2}),
    "depthwise 7x7": ((2, 33, 28, 9), (33, 1, 7, 7), {"padding": 3, "groups": 33}),
    "depthwise stride beyond kernel": ((2, 5, 9, 9), (5, 1, 2, 2), {"groups": 5, "stride": 3}),
    "depthwise 7x7 stride 2": ((2, 66, 15, 13), (66, 1, 7, 7), {"padding": 3, "groups": 66, "stride": 2}),
    "depthwise 2x6": ((1, 18, 9, 21), (18, 1, 2, 6), {"padding": (1, 2), "groups": 18}),
    "depthwise 9 columns": ((1, 18, 9, 21), (18, 1, 2, 9), {"padding": (1, 4), "groups": 18}),
    "depthwise multiplier": ((2, 6, 9, 9), (18, 1, 3, 3), {"padding": 1, "groups": 6, "stride": 2}),
    "depthwise in row blocks": ((1, 3, 90, 150), (3, 1, 3, 3), {"padding": 1, "groups": 3}),
    "depthwise strips": ((2, 35, 19, 53), (35, 1, 3, 3), {"padding": 1, "groups": 35}),
    "depthwise strips, 5x5": ((3, 20, 11, 37), (20, 1, 5, 5), {"padding": 2, "groups": 20}),
    "depthwise strips, 7x7": ((2, 17, 12, 70), (17, 1, 7, 7), {"padding": 3, "groups": 17}),
    "depthwise strips, stride 2": ((2, 33, 17, 75), (33, 1, 3, 3), {"padding": 1, "groups": 33, "stride": 2}),
    "depthwise strips, 5x5, stride 2": ((2, 18, 14, 84), (18, 1, 5, 5), {"padding": 2, "groups": 18, "stride": 2}),
    "depthwise strips, uneven padding": ((2, 20, 9, 33), (20, 1, 5, 5), {"padding": (4, 2), "groups": 20}),
    "depthwise strips, no rows of padding": ((2, 20, 9, 33), (20, 1, 3, 3), {"padding": (0, 1), "groups": 20}),
    "depthwise strips, multiplier": ((2, 8, 9, 40), (24, 1, 3, 3), {"padding": 1, "groups": 8}),
    "depthwise strips, chunks of an image": ((1, 64, 41, 24), (64, 1, 3, 3), {"padding": 1, "groups": 64}),
    "depthwise strips, many images, 5x5": ((32, 16, 28, 28), (16, 1, 5, 5), {"padding": 2, "groups": 16}),
    "depthwise strips, many images, 7x7": ((32, 16, 28, 28), (16, 1, 7, 7), {"padding": 3, "groups": 16}),
    "depthwise windows beyond the image": ((2, 17, 2, 3), (17, 1, 7, 7), {"padding": 3, "groups": 17}),
    "depthwise windows beyond the image, stride 2": (
        (2, 17, 2, 3),
        (17, 1, 5, 5),
        {"padding": 2, "groups": 17, "stride": 2},
    ),
}

# Those that minimal filtering by six points computes in 32 bits (csrc/cpu/conv2d_winograd_plan.h): they have a bar of
# their own. Whatever takes that way unlisted is held to the ordinary one.
SIX_POINTS = {
    "minimal filtering, tails",
    "minimal filtering, no padding",
    "minimal filtering, many tiles",
    "minimal filtering, one row of many tiles",
    "minimal filtering of 4 x 4, many tiles",
    "minimal filtering of 4 x 4, many channels",
    "minimal filtering of 4 x 4, many filters",
    "minimal filtering of 4 x 4, padding 3",
    "minimal filtering, 5x5",
    "minimal filtering, 5x5, many tiles",
    "minimal filtering, 5x5, padding 5",
    "minimal filtering, 5x5, many channels",
    "minimal filtering, dilation 2",
    "minimal filtering, dilations 2 and 3",
    "minimal filtering, 5x5 of dilation 2",
    "minimal filtering, dilation 2, many channels",
    "strips of large images",
    "strips of many channels and filters",
}


def draw(shapes: Shapes, dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Tensor, Tensor, Tensor, dict]:
    """Input, weight, bias and the options."""
    x_shape, weight_shape, options = shapes
    x = torch.randn(x_shape, dtype=dtype).contiguous(memory_format=memory_format)
    weight = torch.randn(weight_shape, dtype=dtype).contiguous(memory_format=memory_format)
    return x, weight, torch.randn(weight_shape[0], dtype=dtype), options


def make(case: str, dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Tensor, Tensor, Tensor, dict]:
    return draw(CASES[case], dtype, memory_format)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, **options: object) -> Tensor:
    filled = {"stride": 1, "padding": 0, "dilation": 1} | options
    groups = filled.pop("groups", 1)
    pairs = [v if isinstance(v, tuple) else (v, v) for v in (filled[k] for k in ("stride", "padding", "dilation"))]
    return references.conv2d(x, weight, bias, *pairs, groups)


def run(function, leaves: list[Tensor | None], dy: Tensor | None, **options) -> tuple[list[Tensor], Tensor]:
    """Output and gradients, and the output's gradient (drawn here where none is given)."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in leaves]
    y = function(*leaves, **options)
    dy = torch.randn_like(y) if dy is None else dy
    y.backward(dy.to(y.dtype))
    return [y.detach(), *[t.grad for t in leaves if t is not None]], dy


def compare(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: dict,
    factor: float = 2,
    native_as_planes: bool = False,
    by_six_points: bool = False,
) -> None:
    """by_six_points: float32 but for the bias's gradient is held to minimal filtering's bar."""
    native, dy = run(F.conv2d, [x.contiguous() if native_as_planes else x, weight, bias], None, **options)
    ours, _ = run(TF.conv2d, [x, weight, bias], dy, **options)
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    exact, _ = run(reference, wide, dy, **options)
    for name, a, b, c in zip(("y", "dx", "dweight", "dbias"), ours, native, exact, strict=False):
        filtered = by_six_points and a.dtype == torch.float32 and name != "dbias"
        assert_as_accurate(a, b, c, factor=8 if filtered else factor, what=name)
        assert not filtered or (a - c).norm() <= 1e-5 * c.norm(), name
        same_strides = a.stride() == b.stride() or 1 in a.shape or native_as_planes
        assert same_strides, f"{name}: strides {a.stride()}, native {b.stride()}"

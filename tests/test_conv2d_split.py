"""conv2d of float32 and float16 in parts of bfloat16: what splitting must not lose. Every ISA is held to the same."""

import pytest
import torch
import torch.nn.functional as F

import tilewright.functional as TF
from tilewright.testing import assert_as_accurate

from .conv2d_cases import CASES, FORMATS, make, run


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("three parts")])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_exact_where_products_are(isa, case, memory_format):
    # Small integers, and a value in one of many: three parts of bfloat16 lose no bit of either.
    x, weight, _, options = make(case, torch.float32, FORMATS[memory_format])
    whole = [t.mul(4).round() for t in (x, weight)]
    shift = torch.zeros_like(weight)
    shift[:, 2, -1, 0] = 1
    for leaves in (whole, [x, shift]):
        native, dy = run(F.conv2d, leaves, None, **options)
        ours, _ = run(TF.conv2d, leaves, dy, **options)
        assert torch.equal(ours[0], native[0])
    whole_dy = dy.mul(4).round()
    native, _ = run(F.conv2d, whole, whole_dy, **options)
    ours, _ = run(TF.conv2d, whole, whole_dy, **options)
    assert all(torch.equal(a, b) for a, b in zip(ours, native, strict=True))


def assert_like_native(leaves, dy_scale, options):
    """Results and gradients, up to a share of the largest."""
    _, dy = run(F.conv2d, leaves, None, **options)
    native, _ = run(F.conv2d, leaves, dy * dy_scale, **options)
    ours, _ = run(TF.conv2d, leaves, dy * dy_scale, **options)
    for a, b in zip(ours, native, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=float(b.abs().max()) * 1e-5)


@pytest.mark.parametrize("scales", [(1e-22, 1e-6), (1e-36, 1e34), (1e-30, 1e-6), (1e34, 1e-36), (0.0, 1.0)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_tiny_values(isa, memory_format, scales):
    # Parts below the least normal number are lost to a tile unit: then the sums are computed without it.
    for case in ("three parts, dilated", "three parts, all passes of 1x1"):
        x, weight, _, options = make(case, torch.float32, FORMATS[memory_format])
        for scale in (1e-35, min(scales)):
            assert_like_native([x * scales[0], weight * scales[1], None], scale, options)


@pytest.mark.parametrize(
    "scales", [(1e-19, 1e-18, 1e-8), (1e-6, 1e-18, 1e-19), (1e-19, 1e-6, 1e-18), (0.0, 1.0, 1e-30)]
)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_tiny_products_of_minimal_filtering(isa, memory_format, scales):
    # Products that are normal numbers, and whose parts are not.
    for case in ("minimal filtering of 4 x 4, many channels", "minimal filtering, many channels"):
        x, weight, _, options = make(case, torch.float32, FORMATS[memory_format])
        assert_like_native([x * scales[0], weight * scales[1], None], scales[2], options)


def test_float16_where_sums_cancel(isa):
    # x y - 1 of 1 + 2^-8: what is left is 2^-16 of the terms.
    x = torch.full((2, 64, 24, 24), 1.00390625, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    x[:, 1::2] = -1
    weight = torch.zeros(64, 64, 3, 3, dtype=torch.float16)
    weight[:, 0, 1, 1], weight[:, 1, 1, 1] = 1.00390625, 1
    y = TF.conv2d(x, weight, padding=1)
    assert torch.equal(y, F.conv2d(x.double(), weight.double(), padding=1).half())
    # Not by Winograd: in parts.
    y = TF.conv2d(x, weight, padding=2, dilation=2)
    assert torch.equal(y, F.conv2d(x.double(), weight.double(), padding=2, dilation=2).half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("sign", [1, -1])
def test_every_nan_stays_one(isa, dtype, memory_format, sign):
    # The largest payloads, as GPUs write them, become zeros of either sign where values are rounded as integers.
    bits = {torch.float32: (torch.int32, 0x7FFFFFFF), torch.float16: (torch.int16, 0x7FFF)}[dtype]
    nan = torch.tensor(bits[1] if sign > 0 else -1, dtype=bits[0]).view(dtype)
    for case in (
        "three parts, all passes of 1x1",
        "three parts, dilated",
        "three parts, stride 2",
        "minimal filtering of 4 x 4, many channels",
    ):
        x, weight, _, options = make(case, dtype, FORMATS[memory_format])
        native, dy = run(F.conv2d, [x.float(), weight.float(), None], None, **options)
        for broken in ((0, 5, 3, 2), (1, 1, 2, 3)):
            bad_x, bad_dy = x.clone(), dy.to(dtype).clone()
            (bad_x if broken[0] == 0 else bad_dy)[broken] = nan
            native, _ = run(F.conv2d, [bad_x.float(), weight.float(), None], bad_dy.float(), **options)
            ours, _ = run(TF.conv2d, [bad_x, weight, None], bad_dy, **options)
            for a, b in zip(ours, native, strict=True):
                assert torch.equal(a.isnan(), b.isnan())


@pytest.mark.parametrize(
    "shapes",
    [
        ((8, 100, 44, 44), (97, 100, 3, 3), {"padding": 1}),
        ((5, 80, 40, 40), (90, 80, 5, 5), {"padding": 2}),
        ((4, 260, 28, 28), (270, 130, 3, 3), {"padding": 1, "groups": 2}),
    ],
    ids=["3x3", "5x5", "groups"],
)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_minimal_filtering_in_stretches(shapes, memory_format):
    """Products beyond the cache that are computed in several stretches of tiles, or group by group."""
    x_shape, weight_shape, options = shapes
    torch.manual_seed(0)
    x = torch.randn(x_shape).contiguous(memory_format=FORMATS[memory_format])
    weight = torch.randn(weight_shape) * weight_shape[1] ** -0.5 / weight_shape[2]
    leaves = [x, weight, None]
    native, dy = run(F.conv2d, leaves, None, **options)
    ours, _ = run(TF.conv2d, leaves, dy, **options)
    wide = [x.double(), weight.double(), None]
    exact, _ = run(F.conv2d, wide, dy.double(), **options)
    for a, b, c in zip(ours, native, exact, strict=True):
        assert_as_accurate(a, b, c, factor=8, what=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_values_that_never_meet(isa, memory_format):
    """Ordinary values of each operand are multiplied by zeros alone: what remains are tiny products."""
    x = (torch.randn(4, 160, 14, 14) * 1e-18).contiguous(memory_format=FORMATS[memory_format])
    weight = torch.randn(150, 160, 3, 3) * 1e-18
    x[:, :20], weight[:, :20] = torch.randn(4, 20, 14, 14), 0
    weight[:, 20:40], x[:, 20:40] = torch.randn(150, 20, 3, 3), 0
    y, exact = TF.conv2d(x, weight, padding=1), F.conv2d(x.double(), weight.double(), padding=1)
    assert (y - exact).norm() <= 1e-5 * exact.norm()

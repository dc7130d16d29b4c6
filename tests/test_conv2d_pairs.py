"""conv2d in bfloat16 where processors multiply pairs of it: stems whose taps are joined, rows of whole tiles."""

import pytest
import torch
import torch.nn.functional as F

import tilewright.functional as TF

from .conv2d_cases import FORMATS, Shapes, compare, draw, run

# input, weight, options. Rows of taps of even and odd length; strides that do not divide them, and longer ones; more
# padding than taps; one row of pixels; widths of whole tiles of 14 pixels, of one more, and of parts of tiles.
STEMS = {
    "7x7 stride 2": ((2, 3, 30, 56), (17, 3, 7, 7), {"padding": 3, "stride": 2}),
    "7x7 stride 2, a tail": ((2, 3, 31, 59), (33, 3, 7, 7), {"padding": 3, "stride": 2}),
    "3x3 stride 2": ((3, 3, 29, 28), (32, 3, 3, 3), {"padding": 1, "stride": 2}),
    "11x11 stride 4": ((2, 3, 47, 63), (20, 3, 11, 11), {"padding": 2, "stride": 4}),
    "16x16 stride 16": ((2, 3, 64, 80), (140, 3, 16, 16), {"stride": 16}),
    "2x3 stride 3, 2": ((2, 1, 20, 31), (8, 1, 2, 3), {"padding": (1, 2), "stride": (3, 2)}),
    "4 channels, rows 2 apart": ((2, 4, 17, 30), (9, 4, 3, 3), {"padding": (2, 1), "dilation": (2, 1)}),
    "2 channels, one row": ((1, 2, 1, 90), (8, 2, 1, 5), {"padding": (0, 2)}),
    "4 channels, wide padding": ((2, 4, 9, 40), (8, 4, 3, 3), {"padding": 4}),
}
ROWS = {
    "rows of one tile": ((2, 32, 14, 14), (40, 32, 3, 3), {"padding": 1}),
    "rows of two tiles": ((2, 32, 11, 28), (33, 32, 3, 3), {"padding": 1}),
    "rows of two tiles, stride 2": ((2, 32, 21, 56), (32, 32, 3, 3), {"padding": 1, "stride": 2}),
    "rows of two tiles and a pixel": ((2, 32, 11, 29), (33, 32, 3, 3), {"padding": 1}),
    **{
        f"rows of {width}": ((2, 24, 6, width), (35, 24, 3, 3), {"padding": 1})
        for width in (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 19, 23)
    },
    "rows of one": ((2, 24, 9, 1), (35, 24, 3, 1), {"padding": (1, 0)}),
    "rows of 7, few filters": ((3, 40, 7, 7), (9, 40, 3, 3), {"padding": 1}),
    "rows of 7, weights beyond the cache": ((2, 300, 7, 7), (290, 300, 3, 3), {"padding": 1}),
    "rows of 13, dilated": ((2, 24, 9, 17), (35, 24, 3, 3), {"dilation": 2}),
}
# Pixels of two values, whose strips end just before their sums.
ENDS = {
    "2 channels": ((1, 2, 1, 17), (140, 2, 1, 2), {}),
    "2 channels, 25 x 25": ((1, 2, 25, 25), (9, 2, 3, 3), {"padding": 1}),
    "2 channels, 37 x 37": ((16, 2, 37, 37), (4, 2, 3, 3), {"padding": 1}),
    "1 channel, stride 2": ((1, 1, 1, 34), (8, 1, 1, 2), {"stride": (1, 2)}),
    "1 channel, 35 x 35": ((1, 1, 35, 35), (8, 1, 5, 5), {"padding": 2}),
    "1 filter": ((1, 16, 59, 59), (1, 16, 3, 3), {"padding": 1}),
    "2 filters": ((1, 16, 1, 16), (2, 16, 1, 2), {"padding": (0, 1)}),
    "2 filters, 25 x 25": ((1, 150, 25, 25), (2, 150, 3, 3), {"padding": 1}),
}
CASES: dict[str, Shapes] = STEMS | ROWS | ENDS


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(isa, case, memory_format):
    compare(*draw(CASES[case], torch.bfloat16, FORMATS[memory_format]))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("case", STEMS)
def test_a_value_beside_the_window_reaches_nothing(isa, case, value):
    """A row of taps of odd length is multiplied with the value behind it, too, by a weight of 0."""
    x, weight, bias, options = draw(CASES[case], torch.bfloat16, torch.channels_last)
    for column in range(x.shape[3] - 12, x.shape[3]):
        spoilt = x.clone()
        spoilt[0, 0, x.shape[2] // 2, column] = value
        # Native in float32: its own bfloat16 stem is NaN beyond the windows that read the value (on Zen 4).
        native = F.conv2d(spoilt.float(), weight.float(), bias.float(), **options)
        ours = TF.conv2d(spoilt, weight, bias, **options).float()
        torch.testing.assert_close(ours, native, equal_nan=True, rtol=0.02, atol=0.2)
        assert torch.equal(ours.isfinite(), native.isfinite())


@pytest.mark.parametrize("case", ["7x7 stride 2, a tail", "11x11 stride 4"])
def test_images_inside_others(case):
    """Pixels that do not lie one behind the other, rows that do not, and memory around them that is not read."""
    x, weight, bias, options = draw(CASES[case], torch.bfloat16, torch.channels_last)
    n, c, h, w = x.shape
    for room, place in (((n, h, w, c + 2), (0, 0, 1)), ((n, h + 2, w + 3, c), (1, 2, 0))):
        whole = torch.full(room, float("nan"), dtype=x.dtype)
        y0, x0, c0 = place
        inside = whole[:, y0 : y0 + h, x0 : x0 + w, c0 : c0 + c]
        inside.copy_(x.permute(0, 2, 3, 1))
        ours, _ = run(TF.conv2d, [inside.permute(0, 3, 1, 2), weight, bias], None, **options)
        torch.testing.assert_close(ours[0], TF.conv2d(x, weight, bias, **options), rtol=0, atol=0)

"""conv2d against float64 math and against native: shapes, options, memory formats, numbers that are not finite."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import DTYPES, ops_called

from .conv2d_cases import CASES, FORMATS, SIX_POINTS, compare, make, run


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(isa, case, dtype, memory_format):
    x, weight, bias, options = make(case, dtype, FORMATS[memory_format])
    compare(x, weight, bias, options, by_six_points=case in SIX_POINTS)


@pytest.mark.parametrize("kinds", [("planes", "channels_last"), ("channels_last", "planes")])
def test_mixed_memory_formats(isa, kinds):
    for case in ("3x3", "groups", "24 groups", "depthwise stride 2", "uneven strides"):
        x, weight, _, options = make(case, torch.float32, FORMATS[kinds[0]])
        compare(x, weight.contiguous(memory_format=FORMATS[kinds[1]]), None, options)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_options(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    groups, channels, filters = draw(1, 1, 2, 5), draw(1, 2, 3, 16, 19), draw(1, 2, 15, 34)
    kernel = (draw(1, 2, 3, 5), draw(1, 2, 3, 6))
    options = {
        "stride": (draw(1, 1, 2, 3), draw(1, 1, 2, 4)),
        "padding": (draw(0, 1, 2), draw(0, 1, 3)),
        "dilation": (draw(1, 1, 2), draw(1, 1, 3)),
        "groups": groups,
    }
    size = [
        max(draw(1, 5, 8, 17), d * (k - 1) + 1 - 2 * p)
        for d, k, p in zip(options["dilation"], kernel, options["padding"], strict=True)
    ]
    dtype, memory_format = draw(*DTYPES), draw(*FORMATS.values())
    x = torch.randn(draw(1, 2, 3), groups * channels, *size, dtype=dtype).contiguous(memory_format=memory_format)
    weight = torch.randn(groups * filters, channels, *kernel, dtype=dtype)
    bias = draw(None, torch.randn(groups * filters, dtype=dtype))
    # Among hundreds of drawn cases native's largest error is now and then small by chance. Native gets planes, because
    # torch 2.13's own F.conv2d crashed (segmentation fault) in a loop of 3000 channels_last draws without tilewright.
    dense = options["stride"] == options["dilation"] == (1, 1) and min(channels, filters) >= 16
    by_six_points = dense and (kernel == (5, 5) or (kernel == (3, 3) and groups == 1))
    compare(x, weight, bias, options, factor=4, native_as_planes=True, by_six_points=by_six_points)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 4), (5, 1)])
@pytest.mark.parametrize("dilation", [1, (2, 3)])
def test_same_and_valid_padding(kernel, dilation):
    x, weight = torch.randn(2, 4, 9, 10), torch.randn(6, 4, *kernel)
    for memory_format in FORMATS.values():
        for padding in ("same", "valid"):
            ours = TF.conv2d(x.contiguous(memory_format=memory_format), weight, padding=padding, dilation=dilation)
            native = F.conv2d(x.contiguous(memory_format=memory_format), weight, padding=padding, dilation=dilation)
            torch.testing.assert_close(ours, native)
            assert ours.stride() == native.stride()


def test_unbatched():
    x, weight, bias = torch.randn(4, 9, 9), torch.randn(6, 4, 3, 3), torch.randn(6)
    native, dy = run(F.conv2d, [x, weight, bias], None)
    ours, _ = run(TF.conv2d, [x, weight, bias], dy)
    for a, b in zip(ours, native, strict=True):
        torch.testing.assert_close(a, b)


def test_own_kernels_do_the_work():
    x, weight = torch.randn(2, 4, 8, 8), torch.randn(4, 4, 3, 3, requires_grad=True)
    called = ops_called(lambda: TF.conv2d(x, weight).sum().backward())
    assert {"tilewright::conv2d_forward", "tilewright::conv2d_backward"} <= called
    assert not any("aten::convolution" in name or "mkldnn" in name for name in called)


def _strided_inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    def randn(*size: int) -> Tensor:
        return torch.randn(*size, dtype=dtype)

    base = randn(3, 8, 10, 12)
    return {
        "every second row": base[:, :, ::2],
        "every second column": base[..., ::2],
        "some channels": base[:, 2:6],
        "some channels of channels_last": base.contiguous(memory_format=torch.channels_last)[:, 2:6],
        "cropped channels_last": base.contiguous(memory_format=torch.channels_last)[:, :, 1:8, 2:9],
        "transposed": base.transpose(2, 3),
        "expanded batch": randn(1, 8, 10, 12).expand(3, -1, -1, -1),
        "expanded channels": randn(3, 1, 10, 12).expand(-1, 8, -1, -1),
        "expanded columns": randn(3, 10, 1, 8).permute(0, 3, 1, 2).expand(-1, -1, -1, 12),
        "one value": randn(1, 1, 1, 1).expand(3, 8, 10, 12),
        "misaligned": randn(3 * 8 * 10 * 12 + 1)[1:].view(3, 8, 10, 12),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("kind", _strided_inputs().keys())
def test_strided_inputs(isa, kind, kernel, dtype):
    x = _strided_inputs(dtype)[kind]
    close = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for groups, memory_format in itertools.product((1, 2, x.shape[1]), FORMATS.values()):
        weight = torch.randn(8, x.shape[1] // groups, kernel, kernel, dtype=dtype)
        weight = weight.contiguous(memory_format=memory_format)
        for bias in (torch.randn(16, dtype=dtype)[::2], torch.randn(1, dtype=dtype).expand(8)):
            ours, native = TF.conv2d(x, weight, bias, groups=groups), F.conv2d(x, weight, bias, groups=groups)
            torch.testing.assert_close(ours, native, **close)
        assert ours.stride() == native.stride()
        # Gradients come expanded from sum() and the like.
        for small in (torch.randn(ours.shape[1:], dtype=dtype), torch.randn(3, 8, 1, 1, dtype=dtype)):
            dy = small.expand_as(ours)
            leaves = [x.clone().requires_grad_(), weight.requires_grad_()]
            grads = [torch.autograd.grad(f.conv2d(*leaves, groups=groups), leaves, dy) for f in (TF, F)]
            largest = max(g.abs().max().item() for g in grads[1])
            torch.testing.assert_close(
                *grads, rtol=1e-4 if not close else 0.05, atol=largest * (0.02 if close else 1e-5)
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_gradient_that_is_a_part_of_another(case, dtype):
    x, weight, bias, options = make(case, dtype, torch.channels_last)
    (y, *_), _ = run(TF.conv2d, [x, weight, bias], None, **options)
    larger = torch.randn(len(y), y.shape[1] + 5, y.shape[2] + 1, y.shape[3] + 2).to(dtype)
    part = larger.contiguous(memory_format=torch.channels_last)[:, 3:-2, 1:, 1:-1]
    grads, _ = run(TF.conv2d, [x, weight, bias], part, **options)
    expected, _ = run(TF.conv2d, [x, weight, bias], part.contiguous(memory_format=torch.channels_last), **options)
    assert all(torch.equal(a, b) for a, b in zip(grads[:3], expected[:3], strict=True))
    # Summed by rows, and of dense images in one stretch.
    torch.testing.assert_close(grads[3], expected[3], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (0, 4, 3, 3)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_zero_batch(shape, memory_format):
    x = torch.randn(shape).contiguous(memory_format=FORMATS[memory_format])
    weight, bias = torch.randn(6, 4, 3, 3), torch.randn(6)
    native, dy = run(F.conv2d, [x, weight, bias], None)
    ours, _ = run(TF.conv2d, [x, weight, bias], dy)
    for a, b in zip(ours, native, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_not_finite_like_native(isa, memory_format, value):
    for case in (
        "3x3",
        "depthwise",
        "depthwise strips",
        "depthwise strips, 7x7",
        "depthwise strips, 5x5, stride 2",
        "1x1",
        "minimal filtering, tails",
        "minimal filtering, many channels",
        "minimal filtering in groups, few tiles",
        "minimal filtering, dilation 2, few tiles",
        "minimal filtering, 5x5",
        "groups of 4, a tail",
        "three parts, 1x1",
        "three parts, 1x1 in groups",
        "three parts, stride 2",
    ):
        x, weight, bias, options = make(case, torch.float32, FORMATS[memory_format])
        weight /= weight[0].numel() ** 0.5
        x[0, 2, 3, 4] = value
        native, dy = run(F.conv2d, [x, weight, bias], None, **options)
        ours, _ = run(TF.conv2d, [x, weight, bias], dy, **options)
        for a, b in zip(ours, native, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_not_finite_in_bfloat16(isa, memory_format, value):
    # Joined groups multiply another group's values by 0, padded channels and pixels by zeros.
    for case in (
        "joined groups of 16",
        "joined groups of stride 2",
        "two joined groups",
        "two groups of 16 channels",
        "channels that do not fill a step",
        "stem",
        "minimal filtering of 4 x 4, many tiles",
    ):
        x, weight, bias, options = make(case, torch.bfloat16, FORMATS[memory_format])
        x[0, 2, 3, 4] = value
        leaves, finite = [x, weight, bias], [x.nan_to_num(0, 0, 0), weight, bias]
        # Native in float32: its own bfloat16 stem is NaN beyond the windows that read the value (on Zen 4).
        native, dy = run(F.conv2d, [leaf.float() for leaf in leaves], None, **options)
        dy = dy.bfloat16()
        native, _ = run(F.conv2d, [leaf.float() for leaf in leaves], dy, **options)
        ours, _ = run(TF.conv2d, leaves, dy, **options)
        dy[0, 1, 2, 3] = value
        native_grads, _ = run(F.conv2d, [leaf.float() for leaf in finite], dy, **options)
        our_grads, _ = run(TF.conv2d, finite, dy, **options)
        for a, b in zip(ours + our_grads, native + native_grads, strict=True):
            torch.testing.assert_close(a, b.bfloat16(), equal_nan=True, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("case", ["strips of large images", "joined groups of large images"])
def test_not_finite_at_an_edge_in_bfloat16(isa, case, value):
    # The first tap of a row never reads the last column; what a strip computes between two rows does.
    # Native in float32: its own bfloat16 gradients are NaN there, too.
    x, weight, bias, options = make(case, torch.bfloat16, torch.channels_last)
    x[0, 2, 3, -1] = value
    native, dy = run(F.conv2d, [x.float(), weight.float(), bias.float()], None, **options)
    dy = dy.bfloat16()
    native, _ = run(F.conv2d, [x.float(), weight.float(), bias.float()], dy, **options)
    ours, _ = run(TF.conv2d, [x, weight, bias], dy, **options)
    assert native[2][:, 2, :, 0].isfinite().all()
    for a, b in zip(ours, native, strict=True):
        torch.testing.assert_close(a.float(), b, equal_nan=True, rtol=0.05, atol=0.5)


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith(("minimal filtering", "three parts"))])
def test_nothing_left_by_another_call_counts(case):
    x, weight, bias, options = make(case, torch.float32, torch.contiguous_format)
    before, dy = run(TF.conv2d, [x, weight, bias], None, **options)
    run(TF.conv2d, [torch.full_like(x, float("nan")), weight, bias], None, **options)  # leaves NaN in freed memory
    after, _ = run(TF.conv2d, [x, weight, bias], dy, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_same_bits_for_any_thread_count():
    for case in (
        "several blocks of k, filters and pixels",
        "stem",
        "depthwise 7x7",
        "depthwise strips",
        "depthwise strips, 5x5, stride 2",
        "24 groups",
        "5x5 kernel on one channel",
        "minimal filtering, many tiles",
        "minimal filtering, many channels",
        "minimal filtering in groups",
        "minimal filtering, dilations 2 and 3",
        "minimal filtering, 5x5, many tiles",
        "groups of 4, a tail",
        "groups of 8, stride 2",
        "depthwise 7x7 stride 2",
        "1x1 stride 2",
        "weights beyond the cache",
        "joined groups of 16",
        "strips of stride 2",
        "strips of large images",
        "joined groups of large images",
        "1x1 on large planes",
        "three parts, all passes of 1x1",
        "three parts, 1x1 in groups",
        "three parts, patches that do not overlap",
        "three parts, stride 2",
    ):
        for memory_format, dtype in itertools.product(FORMATS.values(), (torch.float32, torch.bfloat16, torch.float16)):
            x, weight, bias, options = make(case, dtype, memory_format)
            x = torch.cat([x] * 4)
            dy, results = None, []
            for threads in (1, 2, 3):
                before = torch.get_num_threads()
                torch.set_num_threads(threads)
                result, dy = run(TF.conv2d, [x, weight, bias], dy, **options)
                results.append(result)
                torch.set_num_threads(before)
            assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_only_the_wanted_gradients():
    x, weight, bias = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3), torch.randn(4)
    for wanted in range(3):
        leaves = [x.clone(), weight.clone(), bias.clone()]
        leaves[wanted].requires_grad_()
        grads = [torch.autograd.grad(f.conv2d(*leaves).square().sum(), leaves[wanted])[0] for f in (TF, F)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)

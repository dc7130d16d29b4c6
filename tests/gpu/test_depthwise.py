"""Depthwise convolution in CUDA C++: on the card, or without one in the emulation."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.activations import ACTIVATIONS, PASSES
from tilewright.testing import DTYPES, assert_as_accurate, references

OPS = torch.ops.tilewright
FORMATS = {"planes": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    size: tuple[int, int] = (9, 10)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    channels: int = 8
    multiplier: int = 1
    images: int = 2

    @property
    def options(self) -> tuple[tuple[int, int], ...]:
        return self.stride, self.padding, self.dilation


CASES = {
    "one of everything": Case((1, 1), (1, 1), padding=(0, 0), channels=1, images=1),
    "one pixel, padded": Case((1, 1), (7, 7), padding=(3, 3)),
    "one channel": Case((17, 13), channels=1),
    "three channels": Case((30, 17), channels=3),
    "several tiles of channels": Case((5, 6), channels=160, images=1),
    "idle lanes": Case((5, 6), channels=36, images=1),
    "65 channels": Case((7, 7), (5, 5), padding=(2, 2), channels=65, images=1),
    "30 x 17": Case((30, 17), channels=32, images=1),
    "several blocks": Case((30, 17), channels=32, images=3, stride=(2, 2)),
    "7x7 on 14 x 14": Case((14, 14), (7, 7), padding=(3, 3), channels=12),
    "multiplier 2": Case(multiplier=2, channels=4),
    "multiplier 3, stride 2": Case(multiplier=3, channels=3, stride=(2, 2)),
    "multiplier 2, any kernel": Case(kernel=(2, 4), multiplier=2, channels=5, stride=(2, 1)),
    "no padding": Case(padding=(0, 0)),
    "uneven padding": Case(padding=(2, 0), stride=(2, 2)),
    "odd padding, stride 2": Case((10, 11), (5, 5), padding=(1, 3), stride=(2, 2)),
    "padding beyond the kernel": Case((4, 5), (3, 3), padding=(4, 5)),
    "padding beyond the kernel, stride 2": Case((4, 5), (3, 3), padding=(4, 5), stride=(2, 2)),
    "dilation 2": Case((11, 12), padding=(2, 2), dilation=(2, 2)),
    "dilation 3 and 1": Case((11, 12), (5, 5), padding=(6, 2), dilation=(3, 1)),
    "dilation beyond the image": Case((4, 5), padding=(9, 9), dilation=(9, 9)),
    "dilation far beyond the image": Case((4, 5), padding=(10**5, 10**5), dilation=(10**5, 10**5)),
    "dilation and stride": Case((11, 12), padding=(2, 3), dilation=(2, 3), stride=(2, 2)),
    "common factor of dilation and stride": Case((17, 17), dilation=(4, 4), stride=(6, 6), padding=(4, 4)),
    "stride beyond the kernel": Case((14, 15), (2, 2), stride=(5, 5), padding=(0, 0)),
    "uneven strides": Case((13, 17), (3, 4), stride=(3, 2), padding=(1, 2)),
    "one-dimensional": Case((1, 70), (1, 4), padding=(0, 3)),
    "one-dimensional, long kernel": Case((1, 40), (1, 31), padding=(0, 15), channels=16),
    "single tap, huge dilation": Case((5, 5), (1, 1), padding=(0, 0), dilation=(2**40, 2**40)),
}
TILED = ["several blocks", "7x7 on 14 x 14", "multiplier 2", "odd padding, stride 2", "dilation 3 and 1"]


def _make(case: Case, dtype: torch.dtype, device: torch.device, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    memory_format = torch.channels_last if last else torch.contiguous_format
    filters = case.channels * case.multiplier
    x = torch.randn(case.images, case.channels, *case.size, dtype=dtype, device=device)
    weight = torch.randn(filters, 1, *case.kernel, dtype=dtype, device=device)
    return x.contiguous(memory_format=memory_format), weight, torch.randn(filters, dtype=dtype, device=device)


def _native(x: Tensor, weight: Tensor, bias: Tensor | None, case: Case, dy: Tensor) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias) if t is not None]
    # That of a single tap has no meaning, and may be more than cuDNN takes.
    dilation = tuple(d if size > 1 else 1 for d, size in zip(case.dilation, case.kernel, strict=True))
    options = case.stride, case.padding, dilation
    y = F.conv2d(leaves[0], leaves[1], None if bias is None else leaves[2], *options, groups=case.channels)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def _compare(case: Case, dtype: torch.dtype, device: torch.device, last: bool) -> None:
    x, weight, bias = _make(case, dtype, device, last)
    y, saved = OPS.depthwise_forward(x, weight, bias, *case.options, "none", True, None)
    assert saved is None
    dy = torch.randn_like(y)
    grads = OPS.depthwise_backward(dy, x, weight, *case.options, [True, True, True])
    native = _native(x, weight, bias, case, dy)
    exact = _native(x.double(), weight.double(), bias.double(), case, dy)
    for name, a, b, c in zip(("y", "dx", "dweight", "dbias"), (y, *grads), native, exact, strict=True):
        assert_as_accurate(a, b, c, what=f"{name} of {dtype}")
        expected = torch.channels_last if last and a.dim() == 4 and case.channels > 1 else torch.contiguous_format
        assert a.is_contiguous(memory_format=expected), name


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 6, 7, (3, 5), (7, 1)])
def test_kernels_and_strides(device, kernel, stride, memory_format):
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    padding = ((kernel[0] - 1) // 2, kernel[1] // 2)
    case = Case(kernel=kernel, stride=(stride, stride), padding=padding, size=(8 + stride, 10))
    for dtype in (torch.float32, torch.bfloat16):
        _compare(case, dtype, device, memory_format == "channels_last")


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_shapes(device, name, memory_format):
    _compare(CASES[name], torch.float32, device, memory_format == "channels_last")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", TILED)
def test_dtypes(device, name, memory_format, dtype):
    _compare(CASES[name], dtype, device, memory_format == "channels_last")


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(device, activation, kernel, memory_format):
    case = Case((11, 6), (kernel, kernel), channels=12)
    for dtype in DTYPES:
        x, weight, bias = _make(case, dtype, device, memory_format == "channels_last")
        plain = F.conv2d(x, weight, bias, *case.options, groups=case.channels)
        residual = torch.randn_like(plain, memory_format=torch.contiguous_format)
        exact = F.conv2d(x.double(), weight.double(), bias.double(), *case.options, groups=case.channels)
        act = ACTIVATIONS[activation]
        for extra in (None, residual):
            y, saved = OPS.depthwise_forward(x, weight, bias, *case.options, activation, True, extra)
            native = plain if extra is None else plain + extra
            wide = exact if extra is None else exact + extra.double()
            assert_as_accurate(y, act(native), act(wide), what="y")
            assert (saved is None) == (activation in ("none", *PASSES))
            if saved is not None:
                assert saved.stride() == y.stride()
                assert_as_accurate(saved, native, wide, what="saved")
            again, unsaved = OPS.depthwise_forward(x, weight, bias, *case.options, activation, False, extra)
            assert unsaved is None
            assert torch.equal(again, y)


@pytest.mark.parametrize("kernel", [3, 4])
def test_nan_and_infinity_stay_in_their_windows(device, kernel):
    case = Case(kernel=(kernel, kernel))
    for last in (False, True):
        x, weight, _ = _make(case, torch.float32, device, last)
        x[0, 3, 4, 5], x[1, 2, 0, 0] = float("nan"), float("inf")
        y, _ = OPS.depthwise_forward(x, weight, None, *case.options, "relu", False, None)
        native = F.relu(F.conv2d(x, weight, None, *case.options, groups=case.channels))
        assert torch.equal(y.isnan(), native.isnan())
        assert torch.equal(y.isinf(), native.isinf())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_infinity_reaches_only_the_gradients_of_its_taps(device, kernel, stride):
    """Not those of outputs that a tile has beyond the image."""
    case = Case((9, 10), (kernel, kernel), (stride, stride), (0, 0))
    for last in (False, True):
        x, weight, bias = _make(case, torch.float32, device, last)
        x[0, 1, -1, 3], x[0, 2, 3, -1], x[1, 3, -1, -1] = float("inf"), -float("inf"), float("nan")
        y, _ = OPS.depthwise_forward(x, weight, bias, *case.options, "none", False, None)
        dy = torch.randn_like(y)
        dx, dweight, _ = OPS.depthwise_backward(dy, x, weight, *case.options, [True, True, True])
        leaf = weight.double().requires_grad_()
        exact = references.conv2d(x, leaf, bias, *case.options, case.channels)
        (expected,) = torch.autograd.grad(exact, leaf, dy.double())
        assert torch.equal(dweight.isfinite(), expected.isfinite())
        assert dx.isfinite().all()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kernel", [3, 2])
def test_same_bits_again(device, kernel, memory_format):
    case = Case((30, 17), (kernel, kernel), images=3)
    x, weight, bias = _make(case, torch.float32, device, memory_format == "channels_last")
    y, _ = OPS.depthwise_forward(x, weight, bias, *case.options, "silu", False, None)
    first = OPS.depthwise_backward(y, x, weight, *case.options, [True, True, True])
    again = OPS.depthwise_backward(y, x, weight, *case.options, [True, True, True])
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    for mask in ([True, False, False], [False, True, False], [False, False, True], [False, False, False]):
        some = OPS.depthwise_backward(y, x, weight, *case.options, mask)
        assert [t is not None for t in some] == mask
        assert all(a is None or torch.equal(a, b) for a, b in zip(some, first, strict=True))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_layouts_that_are_not_dense(device, memory_format):
    """Misaligned bases, gaps, an expanded gradient, weights in any layout."""
    case = Case((6, 7), channels=16)
    last = memory_format == "channels_last"
    for dtype in (torch.float32, torch.float16):
        x, weight, bias = _make(case, dtype, device, last)
        y, _ = OPS.depthwise_forward(x, weight, bias, *case.options, "gelu", False, None)
        grads = OPS.depthwise_backward(y, x, weight, *case.options, [True, True, True])
        shifted = torch.empty(x.numel() + 1, dtype=dtype, device=device)[1:].as_strided(x.shape, x.stride()).copy_(x)
        gaps = torch.stack((x, x), -1)[..., 0]
        transposed = weight.transpose(2, 3).contiguous().transpose(2, 3)
        for other_x, other_weight in (
            (shifted, weight),
            (gaps, weight),
            (x, transposed),
            (x, weight.expand_as(weight)),
        ):
            other, _ = OPS.depthwise_forward(other_x, other_weight, bias, *case.options, "gelu", False, None)
            torch.testing.assert_close(other, y)
            for a, b in zip(
                OPS.depthwise_backward(y, other_x, other_weight, *case.options, [True, True, True]), grads, strict=True
            ):
                torch.testing.assert_close(a, b, atol=1e-2 if dtype == torch.float16 else 1e-4, rtol=1e-3)
        ones = torch.ones((), dtype=dtype, device=device).expand_as(y)
        expanded = OPS.depthwise_backward(ones, x, weight, *case.options, [True, True, True])
        dense = OPS.depthwise_backward(torch.ones_like(y), x, weight, *case.options, [True, True, True])
        assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


def test_nothing_to_compute(device):
    case = Case()
    x, weight, bias = _make(case, torch.float32, device, True)
    y, saved = OPS.depthwise_forward(x[:0], weight, bias, *case.options, "gelu", True, None)
    assert y.shape == saved.shape == (0, 8, 9, 10)
    dx, dweight, dbias = OPS.depthwise_backward(y, x[:0], weight, *case.options, [True, True, True])
    assert dx.shape == (0, 8, 9, 10)
    assert not dweight.any()
    assert not dbias.any()


def test_errors(device):
    x, weight, bias = _make(Case(), torch.float32, device, False)
    options = (1, 1), (1, 1), (1, 1)

    def forward(*tensors):
        return OPS.depthwise_forward(*tensors, *options, "none", False, None)

    with pytest.raises(RuntimeError, match="multiple of groups = 8"):
        forward(x, weight[:7], bias[:7])
    with pytest.raises(RuntimeError, match=r"weight.size\(1\)"):
        forward(x, weight.expand(8, 2, 3, 3), bias)
    with pytest.raises(RuntimeError, match=r"bias must have shape \[8\]"):
        forward(x, weight, bias[:4])
    with pytest.raises(ValueError, match="swish"):
        OPS.depthwise_forward(x, weight, bias, *options, "swish", False, None)
    with pytest.raises(RuntimeError, match="residual must have"):
        OPS.depthwise_forward(x, weight, bias, *options, "none", False, x[:, :4])
    with pytest.raises(RuntimeError, match="grad_output must have"):
        OPS.depthwise_backward(x[..., 1:], x, weight, *options, [True, True, True])


@pytest.mark.parametrize("memory_format", FORMATS)
def test_opcheck(device, memory_format):
    case = replace(Case((5, 6), (3, 2), (2, 1), (1, 2), (1, 2), channels=4), multiplier=2)
    x, weight, bias = _make(case, torch.float32, device, memory_format == "channels_last")
    y, _ = OPS.depthwise_forward(x, weight, bias, *case.options, "none", False, None)
    check = torch.library.opcheck
    check(OPS.depthwise_forward.default, (x, weight, bias, *case.options, "gelu", True, y))
    check(OPS.depthwise_forward.default, (x[:0], weight, None, *case.options, "silu", True, None))
    check(OPS.depthwise_backward.default, (y, x, weight, *case.options, [True, True, True]))
    check(OPS.depthwise_backward.default, (y, x, weight, *case.options, [False, True, False]))
    check(OPS.depthwise_backward.default, (y[:0], x[:0], weight, *case.options, [True, True, True]))

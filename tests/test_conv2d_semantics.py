"""conv2d as a PyTorch op: gradients of gradients, compilation, transforms, autocast, bad input."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF

from .conv2d_cases import FORMATS


def _double_inputs() -> tuple[Tensor, Tensor, Tensor]:
    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    return make(2, 4, 5, 6), make(4, 2, 3, 2), make(4)


_OPTIONS = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}


def test_gradcheck(isa):
    def function(x, w, b):
        return TF.conv2d(x, w, b, **_OPTIONS)

    assert torch.autograd.gradcheck(function, _double_inputs(), check_forward_ad=True, check_batched_grad=True)


def test_gradgradcheck():
    assert torch.autograd.gradgradcheck(lambda x, w, b: TF.conv2d(x, w, b, **_OPTIONS), _double_inputs())
    x, w, b = _double_inputs()
    residual = torch.randn(2, 4, 3, 8, dtype=torch.float64, requires_grad=True)

    def function(*t):
        return TF.conv2d_act(*t[:3], **_OPTIONS, residual=t[3])

    assert torch.autograd.gradcheck(function, (x, w, b, residual))
    assert torch.autograd.gradgradcheck(function, (x, w, b, residual))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_opcheck(memory_format, groups):
    ops = torch.ops.tilewright
    x = torch.randn(2, 4, 5, 6).contiguous(memory_format=FORMATS[memory_format]).requires_grad_()
    w = torch.randn(4, 4 // groups, 3, 2, requires_grad=True)
    b = torch.randn(4, requires_grad=True)
    options = ((2, 1), (1, 2), (1, 2), groups)
    y = TF.conv2d(x, w, b, *options).detach()
    torch.library.opcheck(ops.conv2d.default, (x, w, b, *options))
    torch.library.opcheck(ops.conv2d_act.default, (x, w, b, *options), {"residual": y.clone().requires_grad_()})
    x, w, b = x.detach(), w.detach(), b.detach()
    torch.library.opcheck(ops.conv2d_forward.default, (x, w, b, *options, "gelu", True, y))
    torch.library.opcheck(ops.conv2d_forward.default, (x[:0], w, None, *options, "silu", True, None))
    torch.library.opcheck(ops.conv2d_backward.default, (y, x, w, *options, [True, True, True]))
    torch.library.opcheck(ops.conv2d_backward.default, (y, x, w, *options, [False, True, False]))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("padding", [1, "same"])
def test_compile(dynamic, padding):
    def function(x, w, b):
        return TF.conv2d_act(TF.conv2d(x, w, b, padding=padding), w, b, padding=padding, residual=x)

    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    inputs = make(2, 4, 6, 7), make(4, 4, 3, 3), make(4)
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    y, expected = compiled(*inputs), function(*inputs)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    grads = [torch.autograd.grad(out.sin().sum(), inputs) for out in (y, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_meta_tensors():
    x, w = torch.randn(2, 4, 9, 9, device="meta"), torch.randn(6, 4, 3, 3, device="meta", requires_grad=True)
    y = TF.conv2d(x.contiguous(memory_format=torch.channels_last), w, stride=2)
    assert y.is_meta
    assert y.shape == (2, 6, 4, 4)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert w.grad.shape == w.shape
    with pytest.raises(RuntimeError):
        TF.conv2d(x, w, groups=3)


def test_transforms():
    x, w, b = (t.detach() for t in _double_inputs())

    def ours(x):
        return TF.conv2d(x, w, b, **_OPTIONS).sin()

    def native(x):
        return F.conv2d(x, w, b, **_OPTIONS).sin()

    for transform in (torch.func.vmap, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(ours)(x), transform(native)(x))
    weights = torch.stack([w, w * 2])
    torch.testing.assert_close(
        torch.func.vmap(lambda w: TF.conv2d(x, w, b, **_OPTIONS))(weights),
        torch.func.vmap(lambda w: F.conv2d(x, w, b, **_OPTIONS))(weights),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    x, w, b = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3, requires_grad=True), torch.randn(4)
    with torch.autocast("cpu", dtype=dtype):
        y, native = TF.conv2d(x, w, b), F.conv2d(x, w, b)
        fused = TF.conv2d_act(x, w, b, activation="relu", residual=torch.ones_like(y, dtype=torch.float32))
    assert y.dtype == native.dtype == fused.dtype == dtype
    torch.testing.assert_close(y, native)
    y.float().sum().backward()
    assert w.grad.dtype == torch.float32


def test_other_dtypes_go_to_native():
    x, w = torch.randn(1, 2, 5, 5, dtype=torch.complex64), torch.randn(3, 2, 3, 3, dtype=torch.complex64)
    assert torch.equal(TF.conv2d(x, w), F.conv2d(x, w))


_X, _W = torch.randn(2, 4, 6, 6), torch.randn(6, 4, 3, 3)
BAD = {
    "input rank 2": lambda f: f(torch.randn(4, 6), _W),
    "input rank 5": lambda f: f(torch.randn(1, 1, 4, 6, 6), _W),
    "weight rank": lambda f: f(_X, torch.randn(6, 4, 3)),
    "channels": lambda f: f(torch.randn(2, 5, 6, 6), _W),
    "groups do not divide channels": lambda f: f(_X, _W, groups=3),
    "groups do not divide filters": lambda f: f(_X, torch.randn(5, 2, 3, 3), groups=2),
    "zero groups": lambda f: f(_X, _W, groups=0),
    "negative groups": lambda f: f(_X, _W, groups=-1),
    "kernel beyond input": lambda f: f(_X, torch.randn(6, 4, 7, 7)),
    "dilated kernel beyond input": lambda f: f(_X, _W, dilation=3),
    "zero stride": lambda f: f(_X, _W, stride=0),
    "negative stride": lambda f: f(_X, _W, stride=(1, -1)),
    "negative padding": lambda f: f(_X, _W, padding=-1),
    "zero dilation": lambda f: f(_X, _W, dilation=0),
    "three strides": lambda f: f(_X, _W, stride=(1, 1, 1)),
    "float stride": lambda f: f(_X, _W, stride=1.5),
    "same with stride": lambda f: f(_X, _W, padding="same", stride=2),
    "unknown padding": lambda f: f(_X, _W, padding="full"),
    "bias size": lambda f: f(_X, _W, torch.randn(5)),
    "bias rank": lambda f: f(_X, _W, torch.randn(6, 1)),
    "weight dtype": lambda f: f(_X, _W.double()),
    "bias dtype": lambda f: f(_X, _W, torch.randn(6).double()),
    "no channels in weight": lambda f: f(_X, torch.randn(6, 0, 3, 3)),
    "no pixels": lambda f: f(torch.randn(2, 4, 0, 8), _W, padding=2),
    "empty kernel": lambda f: f(_X, torch.randn(6, 4, 0, 3)),
    "not a tensor": lambda f: f([1.0], _W),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_raises_what_native_raises(kind):
    with pytest.raises(Exception) as native:  # noqa: PT011 - native's type is the expectation
        BAD[kind](F.conv2d)
    with pytest.raises(native.type):
        BAD[kind](TF.conv2d)


def test_deterministic_algorithms_turn_winograd_off():
    x, w = torch.randn(4, 32, 16, 16), torch.randn(32, 32, 3, 3)
    winograd = TF.conv2d(x, w, padding=1)
    torch.use_deterministic_algorithms(True)
    try:
        plain = TF.conv2d(x, w, padding=1)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not torch.equal(winograd, plain)
    torch.testing.assert_close(winograd, plain, rtol=1e-4, atol=1e-4)

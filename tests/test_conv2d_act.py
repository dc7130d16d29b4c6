"""conv2d_act: every activation, with and without a residual, against float64 math and against native's separate ops."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import assert_as_accurate, ops_called

from .activations import ACTIVATIONS, reach
from .conv2d_cases import FORMATS, SIX_POINTS, make, reference, run


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_conv2d_act(isa, memory_format, activation, with_residual):
    for case in (
        "3x3",
        "1x1",
        "1x1 stride 2",
        "groups",
        "24 groups",
        "groups of 4, a tail",
        "depthwise stride 2",
        "7x7 images",
        "minimal filtering, tails",
        "minimal filtering in groups, few tiles",
        "minimal filtering, dilations 2 and 3",
        "three parts, dilated",
        "three parts, 1x1",
        "three parts, patches that do not overlap",
    ):
        for dtype in (torch.float32, torch.bfloat16):
            x, weight, bias, options = make(case, dtype, FORMATS[memory_format])
            bias = reach(activation) * bias
            residual = torch.randn(F.conv2d(x, weight, **options).shape, dtype=dtype) if with_residual else None

            def ours(x, weight, bias, residual, options=options):
                return TF.conv2d_act(x, weight, bias, activation=activation, residual=residual, **options)

            def composed(conv2d, x, weight, bias, residual, options=options):
                sum_ = conv2d(x, weight, bias, **options)
                return ACTIVATIONS[activation](sum_ if residual is None else sum_ + residual)

            leaves = [x, weight, bias, residual]
            native, dy = run(lambda *t: composed(F.conv2d, *t), leaves, None)
            mine, _ = run(ours, leaves, dy)
            if dtype == torch.float32:
                wide = [None if t is None else t.double() for t in leaves]
                exact, _ = run(lambda *t: composed(reference, *t), wide, dy.double())
                for a, b, c in zip(mine, native, exact, strict=True):
                    assert_as_accurate(a, b, c, factor=8 if case in SIX_POINTS else 3, what=f"{case} {activation}")
            else:
                # relu's kink: where the two round a value near 0 differently, gradients differ by whole terms.
                assert_as_accurate(
                    mine[0], native[0], composed(reference, *[None if t is None else t.double() for t in leaves])
                )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conv2d_act_is_one_kernel(activation):
    x, weight = torch.randn(2, 4, 8, 8), torch.randn(4, 4, 3, 3, requires_grad=True)

    def act():
        return TF.conv2d_act(x, weight, padding=1, activation=activation, residual=x)

    called = ops_called(lambda: act().sum().backward())
    assert "tilewright::conv2d_forward" in called
    native = {"relu", "hardtanh", "add", "add_", "gelu", "gelu_backward", "silu", "silu_backward"}
    assert not called & {f"aten::{name}" for name in native}


@pytest.mark.parametrize("shape", [(1,), (6, 1, 1), (1, 6, 7, 1), (3, 1, 1, 8), (7, 8), ()])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_residual_broadcasts(activation, shape):
    x, weight, residual = torch.randn(3, 4, 9, 8), torch.randn(6, 4, 3, 1), torch.randn(shape)

    def ours(x, w, r):
        return TF.conv2d_act(x, w, activation=activation, residual=r)

    def native(x, w, r):
        return ACTIVATIONS[activation](F.conv2d(x, w) + r)

    expected, dy = run(native, [x, weight, residual], None)
    actual, _ = run(ours, [x, weight, residual], dy)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_unbatched_with_residual():
    x, weight = torch.randn(4, 9, 8), torch.randn(6, 4, 3, 1)
    for residual in (torch.randn(6, 7, 8), torch.randn(6, 1, 1), torch.randn(8)):
        y = TF.conv2d_act(x, weight, activation="silu", residual=residual)
        torch.testing.assert_close(y, F.silu(F.conv2d(x, weight) + residual), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_gradients(activation):
    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    leaves = make(2, 2, 4, 5), make(3, 2, 2, 2), make(3), make(3, 1, 4)

    def function(x, w, b, r):
        return TF.conv2d_act(x, w, b, activation=activation, residual=r)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saves_no_more_than_native(activation):
    x, weight = torch.randn(2, 4, 9, 9, requires_grad=True), torch.randn(4, 4, 3, 3, requires_grad=True)

    def saved(function) -> int:
        kept = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function()
        return sum(kept.values())

    ours = saved(lambda: TF.conv2d_act(x, weight, padding=1, activation=activation, residual=x))
    assert ours <= saved(lambda: ACTIVATIONS[activation](F.conv2d(x, weight, padding=1) + x))


@pytest.mark.parametrize("activation", ["gelu", "relu", "relu6"])
def test_compiles(activation):
    def function(x, w, r):
        return TF.conv2d_act(x, w, padding=1, activation=activation, residual=r)

    leaves = [torch.randn(s, requires_grad=True) for s in ((2, 4, 6, 7), (4, 4, 3, 3), (4, 1, 1))]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    y, expected = compiled(*leaves), function(*leaves)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    grads = [torch.autograd.grad(out.sin().sum(), leaves) for out in (y, expected)]
    torch.testing.assert_close(*grads)


def test_conv2d_act_refuses():
    x, weight = torch.randn(2, 4, 8, 8), torch.randn(4, 4, 3, 3)
    with pytest.raises(ValueError, match="activation"):
        TF.conv2d_act(x, weight, activation="tanh")
    with pytest.raises(RuntimeError, match="residual"):
        TF.conv2d_act(x, weight, residual=x)
    with pytest.raises(RuntimeError, match="residual"):
        TF.conv2d_act(x, weight, padding=1, residual=x.double())

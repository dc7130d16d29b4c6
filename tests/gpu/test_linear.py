"""linear and linear_act on the GPU against float64 math and native."""

import pytest
import torch
from torch import Tensor

import tilewright.functional as TF
from tests.activations import ACTIVATIONS, PASSES, reach
from tilewright.testing import assert_as_accurate
from tilewright.triton import linear, matmul_product, variants
from tilewright.triton.matmul_config import TILES, Plan, choose

# input, weight; odd and aligned, few rows, few columns, several leading dimensions, a vector
SHAPES = {
    "aligned": ((40, 72), (136, 72)),
    "odd": ((37, 41), (43, 41)),
    "decode": ((3, 136), (72, 136)),
    "few outputs": ((70, 40), (3, 40)),
    "leading dimensions": ((2, 3, 5, 24), (33, 24)),
    "vector": ((24,), (40, 24)),
}


def _operands(kind: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    shape, weight = SHAPES[kind]
    return tuple(torch.randn(s, device=device).to(dtype) for s in (shape, weight, weight[:1]))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_forward_and_gradients(table, device, gpu_dtypes, kind, has_bias):
    for dtype in gpu_dtypes:
        x, w, b = _operands(kind, dtype, device)
        inputs = [t.requires_grad_() for t in ((x, w, b) if has_bias else (x, w))]
        with variants.observed() as seen:
            ours = TF.linear(*inputs)
            dy = torch.randn_like(ours)
            grads = torch.autograd.grad(ours, inputs, dy)
        assert seen, "native did the work"
        native = torch.nn.functional.linear(*inputs)
        exact = [t.detach().double().requires_grad_() for t in inputs]
        reference = torch.nn.functional.linear(*exact)
        assert ours.stride() == native.stride()
        assert_as_accurate(ours, native, reference.detach(), what=kind)
        natives = torch.autograd.grad(native, inputs, dy)
        expected = torch.autograd.grad(reference, exact, dy.double())
        for grad, other, wanted in zip(grads, natives, expected, strict=True):
            assert grad.stride() == other.stride()
            assert_as_accurate(grad, other, wanted, what=f"{kind} {dtype} gradient")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("splits", [1, 2])
def test_activation_in_the_epilogue(table, device, gpu_dtypes, activation, splits, monkeypatch):
    function = ACTIVATIONS[activation]
    monkeypatch.setattr(matmul_product, "choose", lambda *s, **o: Plan(choose(*s, **o).tile, splits, 0.0))
    monkeypatch.setattr(matmul_product, "_recipe", matmul_product._recipe.__wrapped__)
    for dtype in gpu_dtypes:
        x, w, b = _operands("aligned", dtype, device)
        x = reach(activation) * x
        output, saved = torch.ops.tilewright.linear_forward(x, w, b, activation, True)
        exact = torch.nn.functional.linear(*(t.double() for t in (x, w, b)))
        native = torch.nn.functional.linear(x, w, b)
        assert_as_accurate(output, function(native), function(exact), what=activation)
        if activation in ("none", *PASSES):
            assert saved is None
        else:
            assert_as_accurate(saved, native, exact, what=f"{activation}: saved")
        assert torch.ops.tilewright.linear_forward(x, w, b, activation, False)[1] is None


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_linear_act_trains(table, device, gpu_dtypes, activation):
    function = ACTIVATIONS[activation]
    for dtype in gpu_dtypes:
        inputs = [t.requires_grad_() for t in _operands("odd", dtype, device)]
        ours = TF.linear_act(*inputs, activation=activation)
        dy = torch.randn_like(ours)
        native = function(torch.nn.functional.linear(*inputs))
        exact = [t.detach().double().requires_grad_() for t in inputs]
        reference = function(torch.nn.functional.linear(*exact))
        assert_as_accurate(ours, native, reference.detach(), what=activation)
        natives = torch.autograd.grad(native, inputs, dy)
        expected = torch.autograd.grad(reference, exact, dy.double())
        for grad, other, wanted in zip(torch.autograd.grad(ours, inputs, dy), natives, expected, strict=True):
            assert_as_accurate(grad, other, wanted, factor=3.0 if dtype != torch.float32 else 2.0, what=activation)


def test_no_features_give_the_bias(table, device):
    x, w, b = torch.empty(5, 0, device=device), torch.empty(4, 0, device=device), torch.randn(4, device=device)
    assert torch.equal(torch.ops.tilewright.linear_forward(x, w, b, "none", False)[0], b.expand(5, 4))
    assert torch.equal(torch.ops.tilewright.linear_forward(x, w, None, "none", False)[0].cpu(), torch.zeros(5, 4))


def test_nan_passes_every_activation(table, device):
    x, w, b = _operands("odd", torch.float32, device)
    x[3, 0] = torch.nan
    for activation in ACTIVATIONS:
        ours = TF.linear_act(x, w, b, activation=activation)
        assert ours[3].isnan().all(), activation
        assert not ours[:3].isnan().any(), activation


def test_large_tiles_with_bias_and_saved_input(table, device):
    """The epilogue's slices: every tile for large products, with vectors and with single elements stored."""
    for tile in (t for t in TILES[table] if t.kind == "half" and t.M * t.N >= 64 * 64):
        for cols in (tile.N + 8, tile.N + 9) if tile.any_layout else (tile.N + 8,):
            depth = 24 if tile.access > 1 else 23
            x, w = (torch.randn(n, depth, device=device).half() for n in (tile.M + 3, cols))
            b = torch.randn(cols, device=device).half()
            with pytest.MonkeyPatch.context() as patch, variants.observed() as seen:
                patch.setattr(matmul_product, "choose", lambda *_, tile=tile, **__: Plan(tile, 1, 0.0))
                patch.setattr(matmul_product, "_recipe", matmul_product._recipe.__wrapped__)
                output, saved = torch.ops.tilewright.linear_forward(x, w, b, "silu", True)
            assert seen == [matmul_product.product_variant(tile, torch.float16, True, True)]
            native, exact = (
                torch.nn.functional.linear(x, w, b),
                torch.nn.functional.linear(*(t.double() for t in (x, w, b))),
            )
            assert_as_accurate(saved, native, exact, what=str(tile))
            silu = torch.nn.functional.silu
            assert_as_accurate(output, silu(native), silu(exact), what=str(tile))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_of_activations(device, gpu_dtypes, activation):
    function = ACTIVATIONS[activation]
    for dtype in gpu_dtypes:
        for shape in ((1032,), (3, 5, 7), (2, 8, 3, 5)):
            x, dy = ((4 * torch.randn(shape, device=device)).to(dtype) for _ in range(2))
            if len(shape) == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            inputs, exact = x.clone().requires_grad_(), x.double().requires_grad_()
            native = torch.autograd.grad(function(inputs), inputs, dy)[0]
            expected = torch.autograd.grad(function(exact), exact, dy.double())[0]
            saved = function(x) if activation in PASSES else x
            ours = torch.ops.tilewright.activation_backward(dy, saved, activation)
            assert ours.stride() == x.stride()
            assert_as_accurate(ours, native, expected, what=f"{activation} {dtype} {shape}")


@pytest.mark.parametrize("rows", [1, 255, 257, 1500])
def test_column_sums(device, gpu_dtypes, rows):
    for dtype in gpu_dtypes:
        for x in (
            torch.randn(rows, 70, device=device).to(dtype),
            torch.randn(rows, 72, device=device).to(dtype),  # 16 bytes at a time
            torch.randn(rows, 80, device=device).to(dtype)[:, 1:73],
            torch.randn(70, rows, device=device).to(dtype).T,
            torch.randn(1, 70, device=device).to(dtype).expand(rows, 70),
        ):
            ours = linear.column_sum(x)
            again = linear.column_sum(x)
            assert torch.equal(ours, again)
            assert_as_accurate(ours, x.sum(0), x.double().sum(0), what=f"{rows} {dtype}")


def test_wrong_shapes_and_dtypes(device):
    x, w, b = _operands("odd", torch.float32, device)
    op = torch.ops.tilewright.linear_forward
    with pytest.raises(RuntimeError, match="in_features"):
        op(x, w.T, None, "none", False)
    with pytest.raises(RuntimeError, match="same dtype"):
        op(x, w.half(), None, "none", False)
    with pytest.raises(RuntimeError, match="bias must have shape"):
        op(x, w, b[:3], "none", False)
    with pytest.raises(ValueError, match="activation must be one of"):
        op(x, w, b, "tanh", False)
    with pytest.raises(RuntimeError, match="input must have"):
        torch.ops.tilewright.linear_backward(torch.randn(37, 43, device=device), x[:5], w, [True, True, True])

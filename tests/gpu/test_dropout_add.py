"""dropout_add on the GPU against the numpy mask, float64 math and native."""

import pytest
import torch
from torch import Tensor

import tilewright.functional as TF
from tests.gpu.masks import LAYOUTS, drawn_mask, layouts, mask_of, seed_on
from tilewright.testing import DTYPES, assert_as_accurate

OPS = torch.ops.tilewright
# [rows, cols]: one access, odd, a strip of 256 columns and its neighbours, several strips, few and many rows.
SHAPES = ((1, 1), (3, 8), (5, 7), (300, 16), (37, 257), (70, 768), (200, 2056), (1030, 24))


def _formula(x: Tensor, residual: Tensor, bias: Tensor | None, factor: Tensor) -> Tensor:
    return residual + (x if bias is None else x + bias) * factor


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward(device, dtype, biased):
    p = 0.3
    for shape in SHAPES:
        x, residual, dy = torch.randn(3, *shape, device=device).to(dtype)
        bias = torch.randn(shape[-1], device=device).to(dtype) if biased else None
        mask = drawn_mask(x, p)
        results = []
        factors = (None, mask.to(dtype).div(1 - p), mask.double() / (1 - p))
        for factor in factors:
            wide = factor is not None and factor.dtype == torch.float64
            leaves = [
                None if t is None else (t.double() if wide else t).detach().clone().requires_grad_()
                for t in (x, residual, bias)
            ]
            y = TF.dropout_add(*leaves[:2], p, bias=leaves[2]) if factor is None else _formula(*leaves, factor)
            y.backward(dy.to(y.dtype))
            results.append([y.detach(), *(t.grad for t in leaves if t is not None)])
        for name, ours, native, reference in zip(("y", "dx", "dr", "db"), *results, strict=False):
            assert_as_accurate(ours, native, reference, what=f"{name} {shape}")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_any_layout(device, kind):
    p = 0.3
    x = layouts(device)[kind]
    residual = torch.randn(x.shape, device=device)
    for first, second in ((x, residual), (residual, x)):
        y = OPS.dropout_add_forward(first, second, None, seed_on(device), p)
        expected = second + first * (mask_of(x, p) / (1 - p))
        torch.testing.assert_close(y, expected)
        assert y.stride() == (second + torch.empty_like(second)).stride()
    if x.dim() > 0:
        bias = torch.randn(x.shape[-1], device=device)
        y = OPS.dropout_add_forward(x, residual, bias, seed_on(device), p)
        torch.testing.assert_close(y, residual + (x + bias) * (mask_of(x, p) / (1 - p)))
        assert y.is_contiguous()
        grads = OPS.dropout_add_backward(x, seed_on(device), p, [True, True])
        dropped = x * (mask_of(x, p) / (1 - p))
        torch.testing.assert_close(grads[0], dropped)
        torch.testing.assert_close(grads[1], dropped.sum(tuple(range(x.dim() - 1))), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", [(True, False), (False, True), (False, False)])
def test_gradients_that_are_not_wanted(device, mask):
    dy = torch.randn(40, 96, device=device)
    both = OPS.dropout_add_backward(dy, seed_on(device), 0.4, [True, True])
    got = OPS.dropout_add_backward(dy, seed_on(device), 0.4, list(mask))
    for wanted, ours, expected in zip(mask, got, both, strict=True):
        assert torch.equal(ours, expected) if wanted else ours is None


def test_the_bias_gradient_has_the_same_bits_each_time(device):
    dy = torch.randn(3000, 520, device=device)
    first, second = (OPS.dropout_add_backward(dy, seed_on(device), 0.4, [False, True])[1] for _ in range(2))
    assert torch.equal(first, second)


def test_a_wide_or_misaligned_bias(device):
    x, residual = torch.randn(2, 9, 64, device=device).half()
    for bias in (torch.randn(64, device=device), torch.randn(65, device=device).half()[1:]):
        y = OPS.dropout_add_forward(x, residual, bias, seed_on(device), 0.5)
        expected = residual.float() + (x.float() + bias.float()) * (mask_of(x, 0.5) * 2.0)
        torch.testing.assert_close(y, expected.half())


def test_opcheck(device):
    x, seed, bias = torch.randn(3, 50, device=device), seed_on(device), torch.randn(50, device=device)
    for op, arguments in (
        (OPS.dropout_add_forward, (x, x.clone(), bias, seed, 0.3)),
        (OPS.dropout_add_forward, (x.t(), x.t().clone(), None, seed, 0.3)),
        (OPS.dropout_add_backward, (x, seed, 0.3, [True, True])),
    ):
        torch.library.opcheck(op.default, arguments)

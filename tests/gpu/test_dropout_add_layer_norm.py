"""dropout_add_layer_norm on the GPU against the numpy mask, float64 math and native."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF
from tests.gpu.masks import drawn_mask, mask_of, seed_on
from tilewright.testing import DTYPES, assert_as_accurate, ops_called, references

OPS = torch.ops.tilewright
# The ways a group of threads holds a row, of both access widths; the last is too long for registers, and odd.
SHAPES = ((1, 1), (5, 7), (9, 8), (70, 64), (5, 257), (33, 768), (3, 2056))
LONG = ((3, 4099), (2, 33000))


def _separate(norm, factor: Tensor):
    def function(x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        total = residual + x * factor
        return norm(total, weight, bias), total

    return function


def _run(function, inputs: list[Tensor | None], dy: Tensor, dsum: Tensor | None) -> list[Tensor]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    y, total = function(*leaves)
    outputs, grads = ([y], [dy.to(y.dtype)]) if dsum is None else ([y, total], [dy.to(y.dtype), dsum.to(total.dtype)])
    torch.autograd.backward(outputs, grads)
    return [y.detach(), total.detach(), *[t.grad for t in leaves if t is not None]]


def _check(inputs: list[Tensor | None], p: float, dy: Tensor, dsum: Tensor | None) -> None:
    x = inputs[0]
    mask = drawn_mask(x, p) if p > 0 else torch.ones_like(x, dtype=torch.bool)
    shape = (x.shape[-1],)
    ours = _run(lambda x, r, w, b: TF.dropout_add_layer_norm(x, r, shape, w, b, p=p, prenorm=True), inputs, dy, dsum)
    separate = _separate(lambda t, w, b: F.layer_norm(t, shape, w, b), mask.to(x.dtype).div(1 - p))
    native = _run(separate, inputs, dy, dsum)
    wide = [None if t is None else t.double() for t in inputs]
    exact = _separate(lambda t, w, b: references.layer_norm(t, 1, w, b, 1e-5), mask.double() / (1 - p))
    reference = _run(exact, wide, dy.double(), None if dsum is None else dsum.double())
    for name, a, b, c in zip(("y", "sum", "dx", "dr", "d1", "d2"), ours, native, reference, strict=False):
        if x.dtype == torch.float64:
            torch.testing.assert_close(a, c, msg=f"{name} {tuple(x.shape)}")
        else:
            assert_as_accurate(a, b, c, what=f"{name} {tuple(x.shape)}")


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward(device, dtype, prenorm, p):
    for shape in SHAPES:
        x, residual, dy, dsum = torch.randn(4, *shape, device=device).to(dtype)
        weight, bias = torch.randn(2, shape[-1], device=device).to(dtype)
        _check([x, residual, weight, bias], p, dy, dsum if prenorm else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LONG)
def test_long_rows(device, shape, dtype):
    x, residual, dy, dsum = torch.randn(4, *shape, device=device).to(dtype)
    weight = torch.randn(shape[-1], device=device).to(dtype)
    _check([x, residual, weight, None], 0.3, dy, dsum)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_misaligned_and_float32_parameters(device, dtype):
    x, residual, dy, dsum = (torch.randn(5 * 64 + 1, device=device).to(dtype)[1:].view(5, 64) for _ in range(4))
    weight, bias = torch.randn(2, 64, device=device)
    _check([x, residual, weight, bias], 0.3, dy, dsum)


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(7, 96), (7, 99), (3, 20000)])
def test_the_norm_is_that_of_the_sum(device, shape, dtype, seeded):
    x, residual = torch.randn(2, *shape, device=device).to(dtype)
    seed, cols = (seed_on(device) if seeded else None), shape[1:]
    kept, not_kept = (
        OPS.dropout_add_layer_norm_forward(x, residual, cols, None, None, 1e-5, seed, 0.3, keep)
        for keep in (True, False)
    )
    factor = mask_of(x, 0.3) / 0.7 if seeded else 1.0
    torch.testing.assert_close(kept[1], (residual.float() + x.float() * factor).to(dtype))
    norm = OPS.layer_norm_forward(kept[1], cols, None, None, 1e-5)
    for ours, without_sum, alone in zip((kept[0], *kept[2:]), (not_kept[0], *not_kept[2:]), norm, strict=True):
        assert torch.equal(ours, alone)
        assert torch.equal(without_sum, alone)
    assert not_kept[1].shape == (0,)


@pytest.mark.parametrize("shape", [(40, 96), (2, 9000)])
@pytest.mark.parametrize("mask", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 0, 1, 1)])
def test_gradients_that_are_not_wanted(device, shape, mask):
    z, dy, dsum = torch.randn(3, *shape, device=device)
    w, cols = torch.randn(shape[1], device=device), shape[1:]
    _, mean, rstd = OPS.layer_norm_forward(z, cols, w, None, 1e-5)
    every, some = (
        OPS.dropout_add_layer_norm_backward(
            dy, dsum, z, cols, mean, rstd, w, seed_on(device), 0.4, [bool(m) for m in wanted]
        )
        for wanted in ((1, 1, 1, 1), mask)
    )
    for wanted, ours, expected in zip(mask, some, every, strict=True):
        assert torch.equal(ours, expected) if wanted else ours is None


def test_the_same_bits_each_time(device):
    z, dy = torch.randn(2, 1000, 300, device=device)
    w = torch.randn(300, device=device)
    _, mean, rstd = OPS.layer_norm_forward(z, (300,), w, None, 1e-5)
    runs = [
        OPS.dropout_add_layer_norm_backward(dy, None, z, (300,), mean, rstd, w, seed_on(device), 0.4, [True] * 4)
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_any_strides(device):
    x, residual = torch.randn(6, 5, 40, device=device).transpose(0, 1), torch.randn(5, 6, 80, device=device)[..., ::2]
    y, _, _, _ = OPS.dropout_add_layer_norm_forward(x, residual, (40,), None, None, 1e-5, seed_on(device), 0.3, False)
    torch.testing.assert_close(y, F.layer_norm(residual + x * (mask_of(x, 0.3) / 0.7), (40,)))


def test_own_kernels_and_checks(device):
    x, w = torch.randn(4, 8, device=device, requires_grad=True), torch.randn(8, device=device)
    called = ops_called(lambda: TF.dropout_add_layer_norm(x, x, (8,), w, p=0.1).sum().backward())
    assert {
        "tilewright::dropout_add_layer_norm_forward",
        "tilewright::dropout_add_layer_norm_backward",
    } <= called
    z, mean = torch.randn(4, 8, device=device), torch.zeros(4, 1, device=device)
    with pytest.raises(RuntimeError, match="without a seed grad_input"):
        OPS.dropout_add_layer_norm_backward(z, None, z, (8,), mean, mean, w, None, 0.1, [True] * 4)
    with pytest.raises(RuntimeError, match="residual must have input's shape"):
        OPS.dropout_add_layer_norm_forward(z, z[:2], (8,), w, None, 1e-5, None, 0.1, True)


def test_opcheck(device):
    x, residual, w = (
        torch.randn(3, 50, device=device),
        torch.randn(3, 50, device=device),
        torch.randn(50, device=device),
    )
    seed = seed_on(device)
    forward = OPS.dropout_add_layer_norm_forward.default
    torch.library.opcheck(forward, (x, residual, (50,), w, None, 1e-5, seed, 0.3, True))
    _, total, mean, rstd = forward(x, residual, (50,), w, None, 1e-5, seed, 0.3, True)
    arguments = (x, residual, total, (50,), mean, rstd, w, seed, 0.3, [True] * 4)
    torch.library.opcheck(OPS.dropout_add_layer_norm_backward.default, arguments)

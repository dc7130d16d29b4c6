"""layer_norm on the GPU against float64 math and native."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import DTYPES, assert_as_accurate, ops_called, references

OPS = torch.ops.tilewright
# One element, an odd row, each way a group of threads holds a row (and the row behind its last), of both access widths.
COLS = (1, 7, 8, 33, 64, 100, 128, 257, 512, 768, 1000, 1600, 2056)
LONG = (4099, 6000, 12288, 16384, 33000, 40000)
ROWS = (1, 5, 70)


def _run(function, x: Tensor, parameters: list[Tensor | None], dy: Tensor) -> list[Tensor]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, *parameters)]
    y = function(leaves[0], (x.shape[-1],), leaves[1], leaves[2])
    y.backward(dy.to(y.dtype))
    return [y.detach(), *[t.grad for t in leaves if t is not None]]


def _reference(x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return references.layer_norm(x, len(shape), weight, bias, 1e-5)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, dy: Tensor) -> None:
    ours, native = (_run(f, x, [weight, bias], dy) for f in (TF.layer_norm, F.layer_norm))
    wide = [None if t is None else t.double() for t in (weight, bias)]
    reference = _run(_reference, x.double(), wide, dy.double())
    for name, a, b, c in zip(("y", "dx", "d1", "d2"), ours, native, reference, strict=False):
        if x.dtype == torch.float64:  # the reference is no more exact than either
            torch.testing.assert_close(a, c, msg=f"{name} {tuple(x.shape)}")
        else:
            assert_as_accurate(a, b, c, what=f"{name} {tuple(x.shape)}")


@pytest.mark.parametrize("affine", ["both", "weight", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", COLS)
def test_forward_and_backward(device, dtype, cols, affine):
    for rows in ROWS:
        x, dy = torch.randn(2, rows, cols, device=device).to(dtype)
        weight, bias = torch.randn(2, cols, device=device).to(dtype)
        _check(x, None if affine == "none" else weight, bias if affine == "both" else None, dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", LONG)
def test_long_rows(device, dtype, cols):
    x, dy = torch.randn(2, 3, cols, device=device).to(dtype)
    weight, bias = torch.randn(2, cols, device=device).to(dtype)
    _check(x, weight, bias, dy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_more_rows_than_the_grid_takes_at_once(device, dtype):
    x, dy = torch.randn(2, 4100, 16, device=device).to(dtype)
    weight, bias = torch.randn(2, 16, device=device).to(dtype)
    _check(x, weight, bias, dy)


@pytest.mark.parametrize("cols", [64, 768, 20000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_misaligned(device, dtype, cols):
    x, dy = (torch.randn(5 * cols + 1, device=device).to(dtype)[1:].view(5, cols) for _ in range(2))
    weight, bias = (torch.randn(cols + 1, device=device).to(dtype)[1:] for _ in range(2))
    _check(x, weight, bias, dy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cols", [33, 512])
def test_float32_parameters_beside_16_bit_inputs(device, dtype, cols):
    x, dy = torch.randn(2, 9, cols, device=device).to(dtype)
    weight, bias = torch.randn(2, cols, device=device)
    _check(x, weight, bias, dy)


@pytest.mark.parametrize("cols", [100, 1000, 12000])
def test_large_offset_keeps_the_variance(device, cols):
    x = torch.randn(16, cols, device=device) + 1e4
    reference = references.layer_norm(x, 1, None, None, 1e-5)
    assert_as_accurate(TF.layer_norm(x, (cols,)), F.layer_norm(x, (cols,)), reference)


# dx of two columns is what cancellation leaves, in one row by chance more than in another: many rows are compared.
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_rows_of_two_values_keep_their_digits(device, spread):
    x = torch.randn(2000, 1, device=device) + spread * torch.randn(2000, 2, device=device)
    dy, weight = torch.randn(2000, 2, device=device), torch.randn(2, device=device)
    ours, native = (_run(f, x, [weight, None], dy) for f in (TF.layer_norm, F.layer_norm))
    reference = _run(_reference, x.double(), [weight.double(), None], dy.double())
    for index in (1, 2):
        assert_as_accurate(ours[index], native[index], reference[index], factor=1.0)


@pytest.mark.parametrize("cols", [8, 1000])
def test_constant_rows(device, cols):
    x = torch.full((3, cols), 3.0, device=device, requires_grad=True)
    bias = torch.randn(cols, device=device)
    y = TF.layer_norm(x, (cols,), None, bias)
    torch.testing.assert_close(y, bias.expand(3, cols))
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert dx.isfinite().all()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_not_finite_stays_in_its_row(device, value):
    x = torch.randn(3, 20, device=device)
    x[1, 7] = value
    y = TF.layer_norm(x, (20,))
    torch.testing.assert_close(y, F.layer_norm(x, (20,)), equal_nan=True)
    assert y[1].isnan().all()


@pytest.mark.parametrize("shape", [(1000, 300), (2, 9000)])
def test_the_same_bits_each_time(device, shape):
    x = torch.randn(shape, device=device, requires_grad=True)
    w, b = torch.randn(2, shape[1], device=device).requires_grad_().unbind()
    grads = [torch.autograd.grad(TF.layer_norm(x, shape[1:], w, b).sin().sum(), (x, w, b)) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*grads, strict=True))


# Rows that no block holds leave several partial rows where there are many of them.
@pytest.mark.parametrize("cols", [4104, 13000])
def test_many_long_rows(device, cols):
    x, dy = torch.randn(2, 200, cols, device=device, dtype=torch.float64)
    weight, bias = torch.randn(2, cols, device=device, dtype=torch.float64)
    _check(x, weight, bias, dy)


@pytest.mark.parametrize("cols", [96, 9000])
@pytest.mark.parametrize("mask", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_that_are_not_wanted(device, cols, mask):
    x, dy = torch.randn(2, 40 if cols < 1000 else 3, cols, device=device)
    w = torch.randn(cols, device=device)
    _, mean, rstd = OPS.layer_norm_forward(x, (cols,), w, None, 1e-5)
    every, some = (OPS.layer_norm_backward(dy, x, (cols,), mean, rstd, w, list(m)) for m in ((True, True, True), mask))
    for wanted, ours, expected in zip(mask, some, every, strict=True):
        assert torch.equal(ours, expected) if wanted else ours is None


def test_any_strides_and_several_dimensions(device):
    for x in (
        torch.randn(5, 6, 40, device=device).transpose(0, 1),
        torch.randn(5, 6, 80, device=device)[..., ::2],
        torch.randn(1, 1, 40, device=device).expand(5, 6, 40),
    ):
        ours, native = (f(x, x.shape[1:]) for f in (TF.layer_norm, F.layer_norm))
        torch.testing.assert_close(ours, native)
        assert ours.stride() == native.stride()


def test_own_kernels_do_the_work(device):
    x = torch.randn(4, 8, device=device, requires_grad=True)
    called = ops_called(lambda: TF.layer_norm(x, (8,)).sum().backward())
    assert {"tilewright::layer_norm_forward", "tilewright::layer_norm_backward"} <= called


def test_opcheck(device):
    x, w, b = (torch.randn(s, device=device) for s in ((3, 2, 5), (2, 5), (2, 5)))
    torch.library.opcheck(OPS.layer_norm_forward.default, (x, (2, 5), w, b, 1e-5))
    y, mean, rstd = OPS.layer_norm_forward(x, (2, 5), w, b, 1e-5)
    arguments = (torch.ones_like(y), x, (2, 5), mean, rstd, w, [True, True, True])
    torch.library.opcheck(OPS.layer_norm_backward.default, arguments)

"""layer_norm's CUDA kernels against float64 math and against native."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import DTYPES, assert_as_accurate, ops_called, references

# Each way of forward and backward: a group of 8, 32, 128, 512 threads a row, and rows too long for registers; with and
# without 16-byte accesses.
COLS = (1, 5, 64, 100, 257, 768, 1000, 4096, 5001, 16392)


def _run(function, x: Tensor, parameters: list[Tensor | None], dy: Tensor) -> list[Tensor]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, *parameters)]
    y = function(leaves[0], (x.shape[-1],), leaves[1], leaves[2])
    y.backward(dy.to(y.dtype))
    return [y.detach(), *[t.grad for t in leaves if t is not None]]


def _reference(x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return references.layer_norm(x, len(shape), weight, bias, 1e-5)


def _check(x: Tensor, parameters: list[Tensor | None], dy: Tensor) -> None:
    ours = _run(TF.layer_norm, x, parameters, dy)
    native = _run(F.layer_norm, x, parameters, dy)
    wide = [None if t is None else t.double() for t in parameters]
    reference = _run(_reference, x.double(), wide, dy.double())
    for name, a, b, c in zip(("y", "dx", "d1", "d2"), ours, native, reference, strict=False):
        if x.dtype == torch.float64:  # the reference is no more exact than either
            torch.testing.assert_close(a, c, msg=name)
        else:
            assert_as_accurate(a, b, c, what=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", COLS)
def test_forward_and_backward(device, dtype, cols):
    rows = 37 if cols < 2000 else 9
    x, dy = torch.randn(2, rows, cols, dtype=dtype, device=device)
    weight, bias = torch.randn(2, cols, dtype=dtype, device=device)
    _check(x, [weight, bias], dy)


@pytest.mark.parametrize("affine", ["weight", "bias", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_absent_parameters(device, dtype, affine):
    x, dy = torch.randn(2, 6, 200, dtype=dtype, device=device)
    weight = torch.randn(200, dtype=dtype, device=device) if affine == "weight" else None
    bias = torch.randn(200, dtype=dtype, device=device) if affine == "bias" else None
    _check(x, [weight, bias], dy)


@pytest.mark.parametrize("cols", [72, 3001])
def test_wide_parameters(device, cols):
    """float32 parameters beside a bfloat16 input, as autocast and mixed-precision training have them."""
    x, dy = torch.randn(2, 6, cols, device=device).bfloat16()
    _check(x, list(torch.randn(2, cols, device=device)), dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_misaligned(device, dtype):
    x = torch.randn(9 * 64 + 1, dtype=dtype, device=device)[1:].view(9, 64)
    parameters = torch.randn(2 * 64 + 1, dtype=dtype, device=device)[1:].view(2, 64)
    dy = torch.randn(9 * 64 + 3, dtype=dtype, device=device)[3:].view(9, 64)
    for moved_x in (x, x.clone()):
        for moved_parameters in (parameters, parameters.clone()):
            _check(moved_x, list(moved_parameters), dy)


def test_many_rows(device):
    x, dy = torch.randn(2, 3000, 8, device=device)
    _check(x, list(torch.randn(2, 8, device=device)), dy)


def test_own_kernels_do_the_work(device):
    x = torch.randn(4, 8, requires_grad=True, device=device)
    called = ops_called(lambda: TF.layer_norm(x, (8,)).sum().backward())
    assert {"tilewright::layer_norm_forward", "tilewright::layer_norm_backward"} <= called


def test_large_offset_keeps_the_variance(device):
    x = torch.randn(64, 1000, device=device) + 1e4
    reference = references.layer_norm(x, 1, None, None, 1e-5)
    assert_as_accurate(TF.layer_norm(x, (1000,)), F.layer_norm(x, (1000,)), reference)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("cols", [20, 16392])
def test_not_finite_like_native(device, value, cols):
    x = torch.randn(3, cols, device=device)
    x[1, 7] = value
    torch.testing.assert_close(TF.layer_norm(x, (cols,)), F.layer_norm(x, (cols,)), equal_nan=True)


@pytest.mark.parametrize(
    "mask", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
def test_only_the_wanted_gradients(device, mask):
    x, dy, weight = torch.randn(5, 40, device=device), torch.randn(5, 40, device=device), torch.randn(40, device=device)
    _, mean, rstd = torch.ops.tilewright.layer_norm_forward(x, (40,), weight, None, 1e-5)
    everything = torch.ops.tilewright.layer_norm_backward(dy, x, (40,), mean, rstd, weight, (True, True, True))
    wanted = torch.ops.tilewright.layer_norm_backward(dy, x, (40,), mean, rstd, weight, mask)
    for gradient, whole, is_wanted in zip(wanted, everything, mask, strict=True):
        if is_wanted:
            assert torch.equal(gradient, whole)
        else:
            assert gradient is None


def test_same_bits_each_time(device):
    x, dy = torch.randn(2, 300, 130, device=device)
    first, second = (_run(TF.layer_norm, x, list(torch.ones(2, 130, device=device)), dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

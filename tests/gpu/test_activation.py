"""The CUDA C++ kernel of the activations' gradient: on the card, or emulated."""

import pytest
import torch
from torch import Tensor

from tests.activations import ACTIVATIONS
from tests.exact_activations import exact_activation
from tilewright.testing import DTYPES, assert_as_accurate

NATIVE = {name: function for name, function in ACTIVATIONS.items() if name != "none"}


def backward(dy: Tensor, x: Tensor, activation: str) -> Tensor:
    return torch.ops.tilewright.activation_backward(dy, x, activation)


def native_backward(dy: Tensor, x: Tensor, activation: str) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(NATIVE[activation](leaf), leaf, dy)[0]


@pytest.mark.parametrize("activation", NATIVE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "size", [1, 7, 512, 4096 + 5]
)  # less than an access, whole accesses, several blocks and a tail
def test_like_native(device, size, dtype, activation):
    x, dy = ((torch.randn(size, device=device) * 3).to(dtype) for _ in range(2))
    native, reference = (native_backward(*pair, activation) for pair in ((dy, x), (dy.double(), x.double())))
    ours = backward(dy, x, activation)
    if dtype == torch.float64:
        torch.testing.assert_close(ours, reference)
    else:
        assert_as_accurate(ours, native, reference)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str)
def test_tails_keep_their_digits(device, dtype, bar, activation):
    """Slopes far from 0 are small where x < 0: relative to them there is no cancellation."""
    edge = 12.0 if dtype == torch.float32 else 30.0
    x = torch.linspace(-edge if activation == "gelu" else -0.4 * edge, 12.0, 301, dtype=dtype, device=device)
    _, slope = exact_activation(activation, x.cpu())
    error = (backward(torch.ones_like(x), x, activation).cpu().double() - slope).abs()
    # Near a slope's zero only its terms, of the size of 1, can be exact to the bar.
    near_zero = (x.cpu() > -3) & (x.cpu() < 0)
    tiny = torch.finfo(dtype).tiny * 4
    assert (error <= bar * torch.where(near_zero, torch.ones_like(error), slope.abs()) + tiny).all()


@pytest.mark.parametrize("activation", NATIVE)
def test_not_finite_like_native(device, activation):
    values = [float("inf"), float("-inf"), float("nan"), 0.0, -0.0, 6.0, 1e38, -1e38]
    x = torch.tensor(values, device=device).repeat_interleave(3)
    dy = torch.tensor([1.0, float("inf"), float("nan")], device=device).repeat(len(values))
    ours, native = (f(dy, x, activation) for f in (backward, native_backward))
    # Native's cubes overflow where ours do; with an infinite gradient formulas may differ.
    if not activation.startswith("relu"):
        ours, native = ours[::3], native[::3]
        ours, native = ours[x[::3].abs() < 1e30], native[x[::3].abs() < 1e30]
    if activation == "relu6":  # a NaN passes all in native's loops of scalars and on CUDA, and nothing in its vectors
        torch.testing.assert_close(ours[x.isnan()], dy[x.isnan()], equal_nan=True)
        ours, native = ours[~x.isnan()], native[~x.isnan()]
    torch.testing.assert_close(ours, native, equal_nan=True)


def test_none_passes_the_gradient(device):
    dy = torch.randn(33, device=device)
    assert torch.equal(backward(dy, torch.randn_like(dy), "none"), dy)


def test_layouts(device):
    x = torch.randn(2, 5, 4, 6, device=device).contiguous(memory_format=torch.channels_last)
    dy = torch.randn(2, 5, 4, 6, device=device)
    ours = backward(dy, x, "gelu")
    assert ours.stride() == x.stride()
    torch.testing.assert_close(ours, native_backward(dy, x, "gelu"))
    torch.testing.assert_close(backward(dy[..., ::2], x[..., ::2], "silu"), native_backward(dy, x, "silu")[..., ::2])
    x, dy = torch.randn(2, 1001, device=device)[:, 1:].reshape(2, -1), torch.randn(2001, device=device)[1:].view(2, -1)
    torch.testing.assert_close(backward(dy, x, "silu"), native_backward(dy, x, "silu"))  # dy is not aligned
    assert backward(dy[:0], x[:0], "silu").shape == (0, 1000)


@pytest.mark.parametrize("activation", ["relu", "relu6", "gelu"])
def test_opcheck(device, activation):
    x, dy = torch.randn(2, 3, 4, device=device, dtype=torch.float64)
    torch.library.opcheck(torch.ops.tilewright.activation_backward.default, (dy, x, activation))


def test_errors_name_the_argument(device):
    x = torch.randn(4, device=device)
    with pytest.raises(RuntimeError, match="saved must have grad_output's shape"):
        backward(x, x[:2], "relu")
    with pytest.raises(ValueError, match="activation must be one of"):
        backward(x, x, "tanh")

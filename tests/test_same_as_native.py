"""What a program notices beside numbers: strides of results and gradients, empty calls, what may change in between."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF

NATIVE = {
    "linear": F.linear,
    "matmul": torch.matmul,
    "bmm": torch.bmm,
    "baddbmm": torch.baddbmm,
    "conv2d": F.conv2d,
    "layer_norm": F.layer_norm,
    "batch_norm": F.batch_norm,
}


def _outcome(function, make, *options) -> tuple:
    """Everything about a call but its values: shapes, strides, dtypes of results and gradients, or the error's type."""
    torch.manual_seed(0)
    arguments = [a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in make()]
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    try:
        y = function(*arguments, *options)
        y.isfinite()
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        return (type(error),)
    grads = torch.autograd.grad(y, tensors, torch.ones_like(y), allow_unused=True)
    return tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in (y, *grads))


def _float(*shape: int) -> Tensor:
    return torch.randn(shape)


def _turned(rows: int, columns: int) -> Tensor:
    return torch.randn(columns, rows).t()


def _channels_last(*shape: int) -> Tensor:
    return _float(*shape).to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)


LAYOUTS = {
    "linear, contiguous": ("linear", lambda: [_float(5, 3), _float(4, 3), _float(4)]),
    "linear, turned weight": ("linear", lambda: [_float(5, 3), _turned(4, 3), _float(4)]),
    "linear, turned input": ("linear", lambda: [_turned(5, 3), _float(4, 3)]),
    "linear, both": ("linear", lambda: [_turned(5, 3), _turned(4, 3), _float(4)]),
    "linear, batches": ("linear", lambda: [_float(2, 5, 3), _turned(4, 3)]),
    "linear, sliced weight": ("linear", lambda: [_float(5, 3), _float(4, 6)[:, :3], _float(4)]),
    "linear, expanded weight": ("linear", lambda: [_float(5, 3), _float(1, 3).expand(4, 3), _float(4)]),
    "linear, one row": ("linear", lambda: [_float(1, 3), _turned(4, 3), _float(4)]),
    "matmul, contiguous": ("matmul", lambda: [_float(5, 3), _float(3, 4)]),
    "matmul, turned left": ("matmul", lambda: [_turned(5, 3), _float(3, 4)]),
    "matmul, turned right": ("matmul", lambda: [_float(5, 3), _turned(3, 4)]),
    "matmul, both": ("matmul", lambda: [_turned(5, 3), _turned(3, 4)]),
    "batch_norm, size 1": ("batch_norm", lambda: [_channels_last(1, 1, 1, 2), None, None]),
    "batch_norm, one channel": ("batch_norm", lambda: [_channels_last(2, 1, 9, 8), None, None]),
    "batch_norm, one column": ("batch_norm", lambda: [_channels_last(8, 2, 7, 1), None, None]),
    "batch_norm, 5-D": ("batch_norm", lambda: [_channels_last(3, 2, 1, 1, 4), None, None]),
    "batch_norm, one row": ("batch_norm", lambda: [_float(3, 2, 1, 4), None, None]),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_strides_of_results_and_gradients(kind):
    name, make = LAYOUTS[kind]
    options = (None, None, True) if name == "batch_norm" else ()
    assert _outcome(getattr(TF, name), make, *options) == _outcome(NATIVE[name], make, *options)


def test_gradients_of_turned_matrices_have_natives_values():
    for left, right in ((_turned(5, 3), _float(3, 4)), (_float(5, 3), _turned(3, 4)), (_turned(5, 3), _turned(3, 4))):
        leaves = [left.requires_grad_(), right.requires_grad_()]
        weights = torch.randn(5, 4)
        for ours, native in (
            (TF.matmul(*leaves), torch.matmul(*leaves)),
            (TF.linear(left, right.t()), F.linear(left, right.t())),
        ):
            grads = [torch.autograd.grad((y * weights).sum(), leaves) for y in (ours, native)]
            torch.testing.assert_close(*grads)


EMPTY = {
    "linear, no rows": ("linear", lambda: [_float(0, 3), _float(4, 3), _float(4)]),
    "linear, no features": ("linear", lambda: [_float(5, 0), _float(4, 0), _float(4)]),
    "linear, no outputs": ("linear", lambda: [_float(2, 5, 3), _float(0, 3)]),
    "linear, mixed": ("linear", lambda: [_float(0, 3), _float(4, 3).double(), _float(4)]),
    "matmul, no rows": ("matmul", lambda: [_float(2, 0, 3), _float(3, 4)]),
    "matmul, no depth": ("matmul", lambda: [_float(5, 0), _float(0, 4)]),
    "bmm, mixed": ("bmm", lambda: [_float(2, 0, 3), _float(2, 3, 4).double()]),
    "baddbmm, no batch": ("baddbmm", lambda: [_float(1, 5, 4), _float(0, 5, 3), _float(0, 3, 4)]),
    "conv2d, no images": ("conv2d", lambda: [_float(0, 2, 5, 5), _float(3, 2, 3, 3), _float(3)]),
    "conv2d, mixed": ("conv2d", lambda: [_float(0, 2, 5, 5), _float(3, 2, 3, 3).double()]),
    "layer_norm, no rows": ("layer_norm", lambda: [_float(0, 3), (3,), _float(3), _float(3)]),
    "layer_norm, no columns": ("layer_norm", lambda: [_float(4, 0), (0,)]),
    "batch_norm, no images": ("batch_norm", lambda: [_float(0, 3, 4), None, None, _float(3), _float(3), True]),
    "batch_norm, no values": ("batch_norm", lambda: [_float(4, 3, 0), None, None, _float(3), None, True]),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_empty_calls(kind):
    name, make = EMPTY[kind]
    assert _outcome(getattr(TF, name), make) == _outcome(NATIVE[name], make)


def test_a_bias_of_another_dtype_where_native_adds_it():
    x, weight, bias = _float(2, 3, 4, 5)[..., ::2], _float(4, 3), _float(4).double()
    torch.testing.assert_close(TF.linear(x, weight, bias), F.linear(x, weight, bias))
    with pytest.raises(RuntimeError, match="input and bias must have the same dtype"):
        TF.linear(_float(3, 5), _float(4, 5), _float(4).double())


def test_baddbmm_takes_tensors_for_numbers():
    batches = [_float(2, 5, 4), _float(2, 5, 3), _float(2, 3, 4)]
    factors = {"beta": torch.tensor(0.5), "alpha": torch.tensor(2)}
    torch.testing.assert_close(TF.baddbmm(*batches, **factors), torch.baddbmm(*batches, **factors))


CHANGES = {
    "linear": lambda f, x, b: f(x.flatten(1), _ones(4, 18), b),
    "conv2d": lambda f, x, b: f(x, _ones(4, 2, 2, 2), b),
    "batch_norm": lambda f, x, b: f(torch.cat([x, x], 1), None, None, _ones(4), b, training=True),
}


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("higher", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_a_bias_may_change_between_forward_and_backward(name, higher):
    """Native does not save it, so its programs may."""
    results = []
    for function in (getattr(TF, name), NATIVE[name]):
        torch.manual_seed(0)
        x = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
        bias = torch.ones(4, dtype=torch.float64, requires_grad=True)
        shifted = bias * 2
        y = CHANGES[name](function, x, shifted)
        with torch.no_grad():
            shifted.add_(1)
        grads = torch.autograd.grad(y.square().sum(), (x, bias), create_graph=higher)
        results.append([*grads, *(torch.autograd.grad(grads[0].square().sum(), x) if higher else ())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("function", [TF.batch_norm, F.batch_norm])
def test_a_training_flag_is_a_bool(function):
    with pytest.raises(TypeError, match=r"'training'.* must be bool, not int"):
        function(_float(3, 2), None, None, training=1)


@pytest.mark.parametrize("function", [TF.conv2d, F.conv2d])
def test_same_padding_of_no_tensor(function):
    with pytest.raises(TypeError):
        function(_float(1, 2, 5, 5), [1.0], padding="same")

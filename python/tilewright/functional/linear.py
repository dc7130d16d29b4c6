"""Linear layers, with and without an activation."""

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .._C import direct
from ._errors import native_type_errors
from ._overrides import call_override

_linear_op = torch.ops.tilewright.linear.default
_linear_act_op = torch.ops.tilewright.linear_act.default
_linear_direct, _linear_act_direct = direct.linear, direct.linear_act


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias.

    Drop-in for :func:`torch.nn.functional.linear`.

    Args:
        input: [*, in_features].
        weight: [out_features, in_features] (or [in_features]).
        bias: [out_features] or None.

    Returns:
        Tensor [*, out_features] of input's dtype.

    Raises:
        RuntimeError: sizes do not fit together, or dtypes differ.

    Example:
        >>> y = tilewright.functional.linear(torch.randn(8, 64), torch.randn(32, 64), torch.randn(32))
    """
    if not is_dynamo_compiling():
        result = _linear_direct(input, weight, bias)
        if result is not None:
            return result
    return _linear(input, weight, bias)


@native_type_errors
def _linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if has_torch_function_variadic(input, weight, bias):
        return call_override(torch.nn.functional.linear, linear, (input, weight, bias), input, weight, bias)
    return _linear_op(input, weight, bias)


def linear_act(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "gelu") -> Tensor:
    """act(input @ weight.T + bias), the activation applied while the product is in cache.

    Args:
        input: [*, in_features].
        weight: [out_features, in_features].
        bias: [out_features] or None.
        activation: none, relu, relu6, gelu (exact), gelu_tanh or silu.

    Returns:
        Tensor [*, out_features] of input's dtype.

    Raises:
        ValueError: no such activation.
        RuntimeError: sizes do not fit together, or dtypes differ.

    Example:
        >>> y = tilewright.functional.linear_act(torch.randn(8, 64), torch.randn(32, 64), activation="silu")
    """
    if not is_dynamo_compiling():
        result = _linear_act_direct(input, weight, bias, activation)
        if result is not None:
            return result
    return _linear_act(input, weight, bias, activation=activation)


@native_type_errors
def _linear_act(input: Tensor, weight: Tensor, bias: Tensor | None, *, activation: str) -> Tensor:
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(linear_act, (input, weight, bias), input, weight, bias, activation=activation)
    return _linear_act_op(input, weight, bias, activation=activation)

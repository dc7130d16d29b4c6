"""Dropout, a residual sum and its layer norm."""

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ._errors import check_dropout_arguments, native_type_errors

_normed = torch.ops.tilewright.dropout_add_layer_norm.default
_normed_and_sum = torch.ops.tilewright.dropout_add_layer_norm_prenorm.default


@overload
def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    p: float = 0.0,
    training: bool = True,
    *,
    prenorm: Literal[False] = False,
) -> Tensor: ...
@overload
def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    p: float = 0.0,
    training: bool = True,
    *,
    prenorm: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    p: float = 0.0,
    training: bool = True,
    *,
    prenorm: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...
@native_type_errors
def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    p: float = 0.0,
    training: bool = True,
    *,
    prenorm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """layer_norm(residual + dropout(input)) in one pass over the rows.

    Args:
        input: [*, normalized_shape], float32, float64, bfloat16 or float16; other tensors go to native.
        residual: tensor of input's shape (others broadcast, by separate ops).
        normalized_shape: sizes of the trailing dimensions to normalise over.
        weight: [normalized_shape] or None (ones).
        bias: [normalized_shape] or None (zeros).
        eps: added to the variance.
        p: probability of an element of input to be zeroed, in [0, 1].
        training: False drops nothing.
        prenorm: also return residual + dropout(input), which pre-norm models carry to the next sublayer.

    Returns:
        The normalised tensor; with prenorm, (normalised, sum).

    Raises:
        ValueError: p is not in [0, 1].
        RuntimeError: the sum does not end in normalized_shape, weight or bias has another shape, or input and residual
            do not broadcast.

    Example:
        >>> x, r = torch.randn(2, 4, 16, 768)
        >>> y, r = tilewright.functional.dropout_add_layer_norm(x, r, (768,), p=0.1, prenorm=True)
    """
    tensors = (input, residual, weight, bias)
    if has_torch_function_variadic(*tensors):
        arguments: tuple[Any, ...] = (input, residual, normalized_shape, weight, bias, eps, p, training)
        this: Any = dropout_add_layer_norm  # the checker would ask for one of its overloads
        return handle_torch_function(this, tensors, *arguments, prenorm=prenorm)
    check_dropout_arguments("dropout_add_layer_norm", p, training)
    function = _normed_and_sum if prenorm else _normed
    return function(input, residual, normalized_shape, weight, bias, eps, p, training)

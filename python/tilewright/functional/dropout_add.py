"""Dropout, then a residual sum."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ._errors import check_dropout_arguments, native_type_errors

_dropout_add = torch.ops.tilewright.dropout_add.default


@native_type_errors
def dropout_add(
    input: Tensor, residual: Tensor, p: float = 0.5, training: bool = True, *, bias: Tensor | None = None
) -> Tensor:
    """residual + dropout(input + bias) in one pass: the end of a Transformer's sublayer.

    Args:
        input: [*, features], float32, float64, bfloat16 or float16; other tensors go to native.
        residual: tensor of input's shape (others broadcast, by separate ops).
        p: probability of an element of input + bias to be zeroed, in [0, 1].
        training: False drops nothing.
        bias: [features] or None: added to input before dropout, so that the linear layer before needs none.

    Returns:
        Tensor of residual's shape, dtype and memory format.

    Raises:
        ValueError: p is not in [0, 1].
        RuntimeError: the shapes do not broadcast.

    Example:
        >>> y = tilewright.functional.dropout_add(torch.randn(4, 16), torch.randn(4, 16), p=0.1)
    """
    if has_torch_function_variadic(input, residual, bias):
        return handle_torch_function(dropout_add, (input, residual, bias), input, residual, p, training, bias=bias)
    check_dropout_arguments("dropout_add", p, training)
    return _dropout_add(input, residual, p, training, bias)

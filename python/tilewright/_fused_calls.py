"""What the graphs of fused modules call: two or three layers at once, all read from the layer objects at the call.

Where the tensors are not of one kind (a residual that broadcasts, another dtype, a subclass), the separate steps run
instead, as the module's own code wrote them.
"""

from typing import Any

import torch
from torch import Tensor

from . import functional
from .nn.normalization import batch_norm_act


def _fits(input: Tensor, residual: Any, first: bool) -> bool:
    """Whether one op gives what the sum of input (its first operand?) and residual gives, memory format included."""
    if type(residual) is not Tensor or residual.dtype is not input.dtype or residual.shape != input.shape:
        return False
    return first or residual.stride() == input.stride()


def batch_norm_relu(layer: Any, input: Tensor) -> Tensor:
    """relu(layer(input))."""
    return batch_norm_act(layer, input, "relu", None)


def batch_norm_add_relu(layer: Any, input: Tensor, residual: Any, in_place: bool) -> Tensor:
    """relu(layer(input) + residual), with += where in_place, which keeps the first operand's shape and dtype."""
    if _fits(input, residual, first=True):
        return batch_norm_act(layer, input, "relu", residual)
    total = layer(input)
    if in_place:
        total += residual
    else:
        total = total + residual
    return torch.relu(total)


def add_batch_norm_relu(layer: Any, input: Tensor, residual: Any) -> Tensor:
    """relu(residual + layer(input))."""
    if _fits(input, residual, first=False):
        return batch_norm_act(layer, input, "relu", residual)
    return torch.relu(residual + layer(input))


def dropout_add(dropout: Any, input: Tensor, residual: Any, first: bool) -> Tensor:
    """dropout(input) + residual where first, else residual + dropout(input)."""
    if _fits(input, residual, not first):
        return functional.dropout_add(input, residual, dropout.p, dropout.training)
    return dropout(input) + residual if first else residual + dropout(input)


def dropout_add_layer_norm(dropout: Any, norm: Any, input: Tensor, residual: Any, first: bool) -> Tensor:
    """norm(dropout_add(...))."""
    if _fits(input, residual, not first):
        return functional.dropout_add_layer_norm(input, residual, *_settings(dropout, norm))
    return norm(dropout_add(dropout, input, residual, first))


def dropout_add_layer_norm_sum(
    dropout: Any, norm: Any, input: Tensor, residual: Any, first: bool
) -> tuple[Tensor, Tensor]:
    """(norm(sum), sum) with sum = dropout_add(...)."""
    if _fits(input, residual, not first):
        return functional.dropout_add_layer_norm(input, residual, *_settings(dropout, norm), prenorm=True)
    total = dropout_add(dropout, input, residual, first)
    return norm(total), total


def _settings(dropout: Any, norm: Any) -> tuple[Any, ...]:
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps, dropout.p, dropout.training

"""What the graphs of fused modules call: several layers at once, all read from the layer objects at the call.

Where the tensors are not of one kind (a residual that broadcasts, another dtype, a subclass), the separate steps run
instead, as the module's own code wrote them. Where a BatchNorm can not be folded into its convolution at this call
(_fold.py), it is fused with what follows, as it is without one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import functional
from ._meta.conv2d import result_format, result_size
from .functional.conv2d import both
from .nn.conv import padded
from .nn.normalization import batch_norm_act

_SEPARATE: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "relu6": torch.nn.functional.relu6}


def _fits(input: Tensor, residual: Any, first: bool) -> bool:
    """Whether one op gives what the sum of input (its first operand?) and residual gives, memory format included."""
    if type(residual) is not Tensor or residual.dtype is not input.dtype or residual.shape != input.shape:
        return False
    return first or residual.stride() == input.stride()


def batch_norm_activated(layer: Any, input: Tensor, activation: str) -> Tensor:
    """act(layer(input))."""
    return batch_norm_act(layer, input, activation, None)


def batch_norm_add_activated(layer: Any, input: Tensor, activation: str, residual: Any, in_place: bool) -> Tensor:
    """act(layer(input) + residual), with += where in_place, which keeps the first operand's shape and dtype."""
    if _fits(input, residual, first=True):
        return batch_norm_act(layer, input, activation, residual)
    return _add_activated(layer(input), activation, residual, in_place)


def add_batch_norm_activated(layer: Any, input: Tensor, activation: str, residual: Any) -> Tensor:
    """act(residual + layer(input))."""
    if _fits(input, residual, first=False):
        return batch_norm_act(layer, input, activation, residual)
    return _SEPARATE[activation](residual + layer(input))


def _add_activated(total: Tensor, activation: str, residual: Any, in_place: bool) -> Tensor:
    if in_place:
        total += residual
    else:
        total = total + residual
    return _SEPARATE[activation](total)


def conv_batch_norm(folds: Any, conv: Any, norm: Any, input: Tensor) -> Tensor:
    """norm(conv(input))."""
    folded = folds.of(conv, norm, input)
    return norm(conv(input)) if folded is None else conv._conv_forward(input, *folded)


def conv_batch_norm_activated(folds: Any, conv: Any, norm: Any, input: Tensor, activation: str) -> Tensor:
    """act(norm(conv(input)))."""
    folded = folds.of(conv, norm, input)
    if folded is None:
        return batch_norm_activated(norm, conv(input), activation)
    return _conv_activated(conv, *padded(conv, input, folded[0]), folded, activation, None)


def conv_batch_norm_add_activated(
    folds: Any, conv: Any, norm: Any, input: Tensor, activation: str, residual: Any, in_place: bool
) -> Tensor:
    """act(norm(conv(input)) + residual), with += where in_place."""
    folded = folds.of(conv, norm, input)
    if folded is None:
        return batch_norm_add_activated(norm, conv(input), activation, residual, in_place)
    image, padding = padded(conv, input, folded[0])
    if _fits_convolution(conv, image, padding, folded[0], residual, first=True):
        return _conv_activated(conv, image, padding, folded, activation, residual)
    return _add_activated(conv._conv_forward(input, *folded), activation, residual, in_place)


def conv_add_batch_norm_activated(
    folds: Any, conv: Any, norm: Any, input: Tensor, activation: str, residual: Any
) -> Tensor:
    """act(residual + norm(conv(input)))."""
    folded = folds.of(conv, norm, input)
    if folded is None:
        return add_batch_norm_activated(norm, conv(input), activation, residual)
    image, padding = padded(conv, input, folded[0])
    if _fits_convolution(conv, image, padding, folded[0], residual, first=False):
        return _conv_activated(conv, image, padding, folded, activation, residual)
    return _SEPARATE[activation](residual + conv._conv_forward(input, *folded))


def _conv_activated(
    conv: Any, image: Tensor, padding: Any, folded: tuple[Tensor, Tensor], activation: str, residual: Tensor | None
) -> Tensor:
    """act(convolution + residual) by the settings of conv with other parameters; padding is what image lacks."""
    settings = (conv.stride, padding, conv.dilation, conv.groups)
    return functional.conv2d_act(image, *folded, *settings, activation=activation, residual=residual)


def _fits_convolution(conv: Any, image: Tensor, padding: Any, weight: Tensor, residual: Any, first: bool) -> bool:
    """As _fits, of the convolution's result, which is not there yet."""
    if type(residual) is not Tensor or residual.dtype is not image.dtype:
        return False
    size, _ = result_size(image, weight, both(conv.stride), both(padding), both(conv.dilation), conv.groups)
    if [*residual.shape] != size:
        return False
    _, filters, height, width = size
    if first:
        return True
    if result_format(image, weight) is torch.channels_last:
        return residual.stride() == (filters * height * width, 1, filters * width, filters)
    return residual.stride() == (filters * height * width, height * width, width, 1)


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

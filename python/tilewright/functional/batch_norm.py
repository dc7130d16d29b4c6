"""Batch normalisation, alone and with the residual and activation that follow it in a network."""

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from ._errors import check_bool, native_type_errors
from ._overrides import call_override_by_name

_batch_norm = torch.ops.tilewright.batch_norm.default
_batch_norm_act = torch.ops.tilewright.batch_norm_act.default


def _check(input: Tensor, training: bool, eps: float) -> None:
    """What torch.nn.functional.batch_norm checks before it calls the op."""
    if training:
        size = input.size()
        values = size[0]
        for extent in size[2:]:
            values *= extent
        if values == 1:
            raise ValueError(f"batch_norm: expected more than 1 value per channel when training, got input size {size}")
    if training and eps <= 0.0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    if eps < 0.0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    check_bool("batch_norm", "training", training)


@native_type_errors
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel: (x - mean) / sqrt(var + eps) * weight + bias.

    Drop-in for :func:`torch.nn.functional.batch_norm` (Ioffe & Szegedy 2015, arXiv:1502.03167).

    Args:
        input: [N, C, ...], float32, float64, bfloat16 or float16, contiguous or channels_last; others go to native.
        running_mean: [C] or None. Used where training is False; where it is True, updated in place.
        running_var: [C] or None, as running_mean; updated with the unbiased variance.
        weight: [C] or None (ones). May be float32, as bias and the statistics, where input is bfloat16 or float16.
        bias: [C] or None (zeros).
        training: normalise with the mean and the biased variance of the batch.
        momentum: share of the batch in the updated running statistics.
        eps: added to the variance.

    Returns:
        Tensor of input's shape, dtype and memory format.

    Raises:
        ValueError: one value per channel in training, only one of the running statistics given, eps not positive.
        RuntimeError: running statistics missing in evaluation, or a parameter of another size or dtype. The running
            statistics are then unchanged.

    Example:
        >>> x = torch.randn(8, 64, 56, 56)
        >>> y = tilewright.functional.batch_norm(x, None, None, training=True)
    """
    if has_torch_function_variadic(input, running_mean, running_var, weight, bias):
        return call_override_by_name(
            torch.nn.functional.batch_norm, batch_norm, (input, running_mean, running_var, weight, bias), locals()
        )
    _check(input, training, eps)
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


@native_type_errors
def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "relu",
    residual: Tensor | None = None,
) -> Tensor:
    """activation(batch_norm(input) + residual): a block's end in one pass over memory.

    Args:
        input: as :func:`batch_norm`, like all arguments up to eps.
        running_mean: [C] or None.
        running_var: [C] or None.
        weight: [C] or None.
        bias: [C] or None.
        training: as batch_norm.
        momentum: as batch_norm.
        eps: as batch_norm.
        activation: "none", "relu", "relu6", "gelu", "gelu_tanh" or "silu".
        residual: added before the activation; input's shape, or one that broadcasts to it, or None.

    Returns:
        Tensor of input's shape, dtype and memory format.

    Raises:
        ValueError, RuntimeError: as batch_norm; ValueError for an activation of another name.

    Example:
        >>> x, skip = torch.randn(2, 8, 64, 56, 56)
        >>> y = tilewright.functional.batch_norm_act(x, None, None, training=True, residual=skip)
    """
    if has_torch_function_variadic(input, running_mean, running_var, weight, bias, residual):
        return call_override_by_name(
            batch_norm_act, batch_norm_act, (input, running_mean, running_var, weight, bias, residual), locals()
        )
    _check(input, training, eps)
    return _batch_norm_act(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        eps,
        activation=activation,
        residual=residual,
    )

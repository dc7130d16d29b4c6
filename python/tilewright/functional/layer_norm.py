"""Layer normalisation."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from .._C import direct
from ._errors import native_type_errors
from ._overrides import call_override

_layer_norm_op = torch.ops.tilewright.layer_norm.default
_layer_norm_direct = direct.layer_norm


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise over the last dimensions: (x - mean) / sqrt(var + eps) * weight + bias.

    Drop-in for :func:`torch.nn.functional.layer_norm` (Ba, Kiros & Hinton 2016, arXiv:1607.06450); var is the
    biased variance.

    Args:
        input: [*, normalized_shape], float32, float64, bfloat16 or float16; other tensors go to native.
        normalized_shape: sizes of the trailing dimensions to normalise over.
        weight: [normalized_shape] or None (ones). May be float32 where input is bfloat16 or float16.
        bias: [normalized_shape] or None (zeros).
        eps: added to the variance.

    Returns:
        Tensor of input's shape and dtype.

    Raises:
        RuntimeError: input does not end in normalized_shape, or weight or bias has another shape.

    Example:
        >>> y = tilewright.functional.layer_norm(torch.randn(4, 16, 768), (768,))
    """
    if not is_dynamo_compiling():
        result = _layer_norm_direct(input, normalized_shape, weight, bias, eps)
        if result is not None:
            return result
    return _layer_norm(input, normalized_shape, weight, bias, eps)


@native_type_errors
def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    if has_torch_function_variadic(input, weight, bias):
        native, tensors = torch.nn.functional.layer_norm, (input, weight, bias)
        return call_override(native, layer_norm, tensors, input, normalized_shape, weight, bias, eps)
    return _layer_norm_op(input, normalized_shape, weight, bias, eps)

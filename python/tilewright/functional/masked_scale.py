"""Multiplication by a given keep-mask and a number."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ._errors import native_type_errors

_masked_scale = torch.ops.tilewright.masked_scale.default


@native_type_errors
def masked_scale(input: Tensor, mask: Tensor, scale: float) -> Tensor:
    """input * mask * scale in one pass, for a mask that says which elements to keep.

    Args:
        input: any shape, float32, float64, bfloat16 or float16; other tensors go to native.
        mask: bool (True keeps), or any other dtype, multiplied as Python's expression would; broadcastable.
        scale: the factor of what is kept.

    Returns:
        Tensor of the broadcast shape.

    Raises:
        RuntimeError: input and mask do not broadcast.

    Example:
        >>> y = tilewright.functional.masked_scale(torch.randn(4, 16), torch.rand(4, 16) > 0.1, 1 / 0.9)
    """
    if has_torch_function_variadic(input, mask):
        return handle_torch_function(masked_scale, (input, mask), input, mask, scale)
    return _masked_scale(input, mask, scale)

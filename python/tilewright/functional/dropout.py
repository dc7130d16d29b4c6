"""Dropout."""

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_unary

from .._C import direct
from ._errors import check_dropout_arguments, native_type_errors
from ._overrides import call_override

_dropout_op = torch.ops.tilewright.dropout.default
_dropout_inplace_op = torch.ops.tilewright.dropout_.default
_dropout_direct = direct.dropout


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability p and scale the others by 1 / (1 - p), while training.

    Drop-in for :func:`torch.nn.functional.dropout` (Srivastava et al. 2014). The mask comes from Philox4x32-10, keyed
    by one number that each call draws from torch's default generator: ``torch.manual_seed`` rules it, and it is the
    same for any number of threads, instruction set and memory format.

    Args:
        input: any shape, float32, float64, bfloat16 or float16; other tensors go to native.
        p: probability of an element to be zeroed, in [0, 1].
        training: False returns input itself.
        inplace: write the result into input.

    Returns:
        Tensor of input's shape, dtype and memory format; input itself where inplace, not training or p is 0.

    Raises:
        ValueError: p is not in [0, 1].
        RuntimeError: inplace on a leaf that requires grad, or on memory that overlaps itself.

    Example:
        >>> y = tilewright.functional.dropout(torch.randn(4, 16), p=0.1)
    """
    # A probability that is none is left to the checks below.
    if inplace is False and not is_dynamo_compiling() and isinstance(p, float) and 0.0 <= p <= 1.0:
        result = _dropout_direct(input, p, training)
        if result is not None:
            return result
    return _dropout(input, p, training, inplace)


@native_type_errors
def _dropout(input: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
    if has_torch_function_unary(input):
        return call_override(
            torch.nn.functional.dropout, dropout, (input,), input, p=p, training=training, inplace=inplace
        )
    if input is None:
        raise TypeError("dropout(): argument 'input' must be Tensor, not NoneType")
    check_dropout_arguments("dropout", p, training)
    return _dropout_inplace_op(input, p, training) if inplace else _dropout_op(input, p, training)

"""Products of vectors, matrices and batches of matrices."""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from .._C import direct
from ._errors import native_type_errors
from ._overrides import call_override

_matmul_op = torch.ops.tilewright.matmul.default
_bmm_op = torch.ops.tilewright.bmm.default
_baddbmm_op = torch.ops.tilewright.baddbmm.default
_matmul_direct, _bmm_direct, _baddbmm_direct = direct.matmul, direct.bmm, direct.baddbmm


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """Matrix product with torch's rules for vectors and batches: [*, M, K] x [*, K, N] -> [*, M, N].

    Drop-in for :func:`torch.matmul`. Transposed, expanded and offset operands are read in place; 16-bit types sum
    in float32 and are rounded once.

    Args:
        input: at least 1-D; a vector is a row.
        other: at least 1-D; a vector is a column. Leading dimensions of both broadcast.

    Returns:
        Tensor of the operands' dtype.

    Raises:
        RuntimeError: inner sizes differ, batches do not broadcast, or dtypes differ.

    Example:
        >>> y = tilewright.functional.matmul(torch.randn(8, 64, 32), torch.randn(32, 16))
    """
    if not is_dynamo_compiling():
        result = _matmul_direct(input, other)
        if result is not None:
            return result
    return _matmul(input, other)


@native_type_errors
def _matmul(input: Tensor, other: Tensor) -> Tensor:
    if has_torch_function_variadic(input, other):
        return call_override(torch.matmul, matmul, (input, other), input, other)
    return _matmul_op(input, other)


def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """Product of two batches of matrices: [B, M, K] x [B, K, N] -> [B, M, N].

    Drop-in for :func:`torch.bmm`.

    Args:
        input: 3-D.
        mat2: 3-D, with the same batch size (no broadcasting; an expanded operand is read in place).

    Returns:
        Tensor [B, M, N] of the operands' dtype.

    Raises:
        RuntimeError: an operand is not 3-D, or sizes or dtypes differ.
    """
    if not is_dynamo_compiling():
        result = _bmm_direct(input, mat2)
        if result is not None:
            return result
    return _bmm(input, mat2)


@native_type_errors
def _bmm(input: Tensor, mat2: Tensor) -> Tensor:
    if has_torch_function_variadic(input, mat2):
        return call_override(torch.bmm, bmm, (input, mat2), input, mat2)
    return _bmm_op(input, mat2)


def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * input + alpha * (batch1 @ batch2), in one pass.

    Drop-in for :func:`torch.baddbmm`. With beta = 0 input is not read: its NaN and Inf do not spread.

    Args:
        input: broadcasts to [B, M, N].
        batch1: [B, M, K].
        batch2: [B, K, N].
        beta: factor of input.
        alpha: factor of the product.

    Returns:
        Tensor [B, M, N] of the operands' dtype.

    Raises:
        RuntimeError: a batch is not 3-D, or sizes or dtypes differ.
    """
    if not is_dynamo_compiling():
        result = _baddbmm_direct(input, batch1, batch2, beta, alpha)
        if result is not None:
            return result
    return _baddbmm(input, batch1, batch2, beta=beta, alpha=alpha)


@native_type_errors
def _baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float, alpha: float) -> Tensor:
    if has_torch_function_variadic(input, batch1, batch2):
        return call_override(
            torch.baddbmm, baddbmm, (input, batch1, batch2), input, batch1, batch2, beta=beta, alpha=alpha
        )
    return _baddbmm_op(input, batch1, batch2, beta=_as_number(beta), alpha=_as_number(alpha))


def _as_number(value: Any) -> Any:
    """What native's argument parser also takes for a number: a tensor without dimensions, a numpy scalar."""
    is_scalar = isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad
    if is_scalar or (type(value).__module__ == "numpy" and not hasattr(value, "__len__")):
        return value.item()
    return value

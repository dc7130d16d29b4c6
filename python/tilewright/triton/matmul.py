"""matmul, bmm and baddbmm on the GPU: operands described by strides, computed by :mod:`matmul_product`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .matmul_operands import Operand, Product, matrix
from .matmul_product import product_variants, run
from .variants import Variant

# One matrix for all items: with so few rows each, items that are not rows of one matrix are gathered first.
_FEW_ROWS = 64


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _check_dtypes(op: str, **tensors: Tensor) -> None:
    (first, left), (second, right) = tensors.items()
    _check(
        left.dtype == right.dtype,
        f"{op}: {first} and {second} must have the same dtype, got {left.dtype} and {right.dtype}",
    )


def _shapes(op: str, left: Sequence[int], right: Sequence[int]) -> tuple[int, int, int, list[int], list[int]]:
    """(M, N, K, batch dimensions, shape of the result), or what native raises."""
    got = f"got input of shape {list(left)} and other of shape {list(right)}"
    _check(len(left) > 0 and len(right) > 0, f"{op}: input and other must be at least 1-D, {got}")
    M, N = left[-2] if len(left) > 1 else 1, right[-1] if len(right) > 1 else 1
    K, rows = left[-1], right[-2] if len(right) > 1 else right[0]
    _check(rows == K, f"{op}: input's last dimension ({K}) must equal other's second to last ({rows}), {got}")
    try:
        batch = list(torch.broadcast_shapes(left[:-2], right[:-2]))
    except RuntimeError:
        raise RuntimeError(f"{op}: batch dimensions of input and other must broadcast, {got}") from None
    return M, N, K, batch, batch + [M] * (len(left) > 1) + [N] * (len(right) > 1)


def _rows(tensor: Tensor, rows: int, cols: int, batch: list[int]) -> Operand:
    """A contiguous result [batch, rows, cols]."""
    strides, step = [0] * len(batch), rows * cols
    for d in reversed(range(len(batch))):
        strides[d], step = step, step * batch[d]
    return Operand(tensor, cols, 1, strides)


def _forward(input: Tensor, other: Tensor) -> Tensor:
    _check_dtypes("matmul", input=input, other=other)
    M, N, K, batch, shape = _shapes("matmul", input.shape, other.shape)
    output = torch.empty(shape, dtype=input.dtype, device=input.device)
    if output.numel() == 0:
        return output
    if other.dim() == 2 and input.dim() > 2 and M < _FEW_ROWS:
        input = input.contiguous()
    a, b = matrix(input, len(batch)), matrix(other, len(batch), is_left=False)
    run(Product(M, N, K, batch, [False] * len(batch), a, b, _rows(output, M, N, batch)))
    return output


def _gradient(
    op_shape: Sequence[int], grad: Tensor, batch: list[int], is_left: bool, rows: int, cols: int, **parts: Any
) -> Tensor:
    """The gradient of an operand: a product over the dimensions it was broadcast along as well."""
    result = torch.empty(list(op_shape), dtype=grad.dtype, device=grad.device)
    if result.numel() == 0:
        return result
    own = [1] * (len(batch) - len(op_shape) + 2) + list(op_shape[:-2]) if len(op_shape) > 1 else [1] * len(batch)
    reduced = [mine == 1 and size != 1 for mine, size in zip(own, batch, strict=True)]
    c = matrix(result, len(batch), is_left=is_left)
    c.row, c.col = cols, 1
    run(Product(rows, cols, parts["K"], batch, reduced, parts["a"], parts["b"], c, alpha=parts["alpha"]))
    return result


def _backward(
    grad_output: Tensor,
    input: Tensor | None,
    other: Tensor | None,
    input_shape: Sequence[int],
    other_shape: Sequence[int],
    alpha: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    M, N, K, batch, shape = _shapes("matmul_backward", input_shape, other_shape)
    _check(
        list(grad_output.shape) == shape,
        f"matmul_backward: grad_output must have shape {shape}, got {list(grad_output.shape)}",
    )
    has_input = input is not None and list(input.shape) == list(input_shape)
    has_other = other is not None and list(other.shape) == list(other_shape)
    _check(
        (not output_mask[0] or has_other) and (not output_mask[1] or has_input),
        "matmul_backward: the gradient of input needs other and that of other needs input, of the given shapes",
    )
    # grad_output as [batch, M, N] although the dimensions of vectors are missing from it.
    strides, dims = grad_output.stride(), len(batch)
    row = strides[dims] if len(input_shape) > 1 else 0
    col = strides[-1] if len(other_shape) > 1 else 0
    grad = Operand(grad_output, row, col, [0 if batch[d] == 1 else strides[d] for d in range(dims)])
    grad_input = grad_other = None
    if output_mask[0] and other is not None:
        _check_dtypes("matmul_backward", grad_output=grad_output, other=other)
        b = matrix(other, dims, is_left=False).turned()
        grad_input = _gradient(input_shape, grad_output, batch, True, M, K, a=grad, b=b, K=N, alpha=float(alpha))
    if output_mask[1] and input is not None:
        _check_dtypes("matmul_backward", grad_output=grad_output, input=input)
        a = matrix(input, dims).turned()
        grad_other = _gradient(other_shape, grad_output, batch, False, K, N, a=a, b=grad, K=M, alpha=float(alpha))
    return grad_input, grad_other


def _baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, beta: float, alpha: float) -> Tensor:
    got = f"got shapes {list(batch1.shape)} and {list(batch2.shape)}"
    if batch1.dim() < 2 or batch2.dim() < 3:
        raise IndexError(f"baddbmm: batch1 and batch2 must be 3-D, {got}")
    _check(
        batch1.dim() == 3 and batch2.dim() == 3 and batch1.shape[0] == batch2.shape[0],
        f"baddbmm: batch1 and batch2 must be 3-D with the same batch size, {got}",
    )
    _check_dtypes("baddbmm", batch1=batch1, batch2=batch2)
    _check_dtypes("baddbmm", input=input, batch1=batch1)
    M, N, K, batch, shape = _shapes("baddbmm", batch1.shape, batch2.shape)
    addend = input.expand(shape)
    output = torch.empty(shape, dtype=batch1.dtype, device=batch1.device)
    if output.numel() == 0:
        return output
    product = Product(M, N, K, batch, [False], matrix(batch1, 1), matrix(batch2, 1), _rows(output, M, N, batch))
    product.alpha, product.beta = float(alpha), float(beta)
    if product.beta != 0:
        product.addend = matrix(addend, 1)
    run(product)
    return output


def variants(architecture: int) -> list[Variant]:
    return product_variants(architecture)


implementations: dict[str, Callable[..., Any]] = {
    "matmul_forward": _forward,
    "matmul_backward": _backward,
    "baddbmm_forward": _baddbmm,
}

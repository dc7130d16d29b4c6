"""linear and linear_act on the GPU: rows of input are the rows of one product, bias and activation its epilogue."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .._meta.activation import gradient_reads_input
from . import DTYPES
from .activation import CODES
from .linear_kernel import activation_backward, column_sums
from .matmul_config import cdiv
from .matmul_operands import Operand, Product, matrix
from .matmul_product import product_variants, run
from .variants import Variant, launch, type_name

_ROWS, _COLUMNS = 64, 64
_PROGRAMS = 512  # of the first stage of the column sums, about: enough for any card, so results do not depend on it
_CHUNK_ROWS = 256  # at least
_BLOCK = 1024  # elements of a program of the activations' gradient


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _as_rows(tensor: Tensor) -> Tensor:
    """[*, cols] as rows of one matrix, without a copy where the strides allow it."""
    if tensor.dim() == 2:
        return tensor
    rows = 1
    for size in tensor.shape[:-1]:
        rows *= size
    return tensor.reshape(rows, tensor.shape[-1])


def _contiguous(tensor: Tensor) -> Operand:
    return Operand(tensor, tensor.shape[-1], 1, [])


def _forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, saves: bool
) -> tuple[Tensor, Tensor | None]:
    _check(
        weight.dim() == 2 and input.dim() >= 1 and input.shape[-1] == weight.shape[1],
        "linear: input must be [*, in_features] and weight [out_features, in_features], got input of shape "
        f"{list(input.shape)} and weight of shape {list(weight.shape)}",
    )
    _check(
        input.dtype == weight.dtype,
        f"linear: input and weight must have the same dtype, got {input.dtype} and {weight.dtype}",
    )
    if bias is not None:
        _check(
            bias.dim() == 1 and bias.shape[0] == weight.shape[0] and bias.dtype == input.dtype,
            f"linear: bias must have shape [{weight.shape[0]}] (out_features) and dtype {input.dtype}, got shape "
            f"{list(bias.shape)} and dtype {bias.dtype}",
        )
    if activation not in CODES:
        raise ValueError(f"activation must be one of {', '.join(CODES)}, got '{activation}'")
    shape = [*input.shape[:-1], weight.shape[0]]
    output = torch.empty(shape, dtype=input.dtype, device=input.device)
    pre = torch.empty_like(output) if saves and gradient_reads_input(activation) else None
    if output.numel() == 0:
        return output, pre
    rows = _as_rows(input)
    product = Product(
        rows.shape[0],
        weight.shape[0],
        weight.shape[1],
        [],
        [],
        matrix(rows, 0),
        matrix(weight, 0).turned(),
        _contiguous(output),
        pre=pre,
        activation=CODES[activation],
    )
    if bias is not None:
        product.addend = matrix(bias, 0)
    run(product)
    return output, pre


@lru_cache(maxsize=64)
def sums_variant(source: torch.dtype, result: torch.dtype, unit: int) -> Variant:
    types = {"x": f"*{type_name(source)}", "out": f"*{type_name(result)}"}
    types |= dict.fromkeys(("rows", "cols", "row_stride", "col_stride", "rows_per_chunk"), "i64")
    constants = (("ROWS", _ROWS), ("COLUMNS", _COLUMNS), ("UNIT", unit))
    return Variant(column_sums, tuple(types.items()), constants, 4, 2)


def sum_chunks(rows: int, cols: int) -> tuple[int, int]:
    """(chunks, rows in each) that the rows are cut into: a function of the shape alone; the last may have fewer."""
    chunks = max(1, min(_PROGRAMS // cdiv(cols, _COLUMNS), cdiv(rows, _CHUNK_ROWS)))
    per_chunk = cdiv(max(rows, 1), chunks)
    return cdiv(max(rows, 1), per_chunk), per_chunk


def column_sum(x: Tensor) -> Tensor:
    """The sum over the rows of a matrix, in float32 and one order, rounded once."""
    rows, cols = x.shape
    out = torch.empty(cols, dtype=x.dtype, device=x.device)
    if cols == 0:
        return out
    chunks, per_chunk = sum_chunks(rows, cols)
    blocks = cdiv(cols, _COLUMNS)
    unit, widest = int(x.stride(1) == 1), 16 // x.itemsize
    if unit and chunks > 1 and x.data_ptr() % 16 == x.stride(0) % widest == cols % widest == 0:
        unit = widest
    strides = {"row_stride": x.stride(0), "col_stride": x.stride(1)}
    target = out if chunks == 1 else torch.empty(chunks, cols, dtype=torch.float32, device=x.device)
    arguments = {"x": x, "out": target, "rows": rows, "cols": cols, **strides, "rows_per_chunk": per_chunk}
    launch(sums_variant(x.dtype, target.dtype, unit), (blocks, chunks), arguments)
    if chunks > 1:
        strides = {"row_stride": cols, "col_stride": 1}
        arguments = {"x": target, "out": out, "rows": chunks, "cols": cols, **strides, "rows_per_chunk": chunks}
        launch(sums_variant(torch.float32, x.dtype, 1), (blocks, 1), arguments)
    return out


def _backward(
    grad_output: Tensor, input: Tensor | None, weight: Tensor | None, output_mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    _check(grad_output.dim() >= 1, "linear_backward: grad_output must be at least 1-D")
    _check(
        (not output_mask[0] or weight is not None) and (not output_mask[1] or input is not None),
        "linear_backward: the gradient of input needs weight and that of weight needs input",
    )
    dtype, device = grad_output.dtype, grad_output.device
    grad = _as_rows(grad_output)
    rows, out = grad.shape
    grad_input = grad_weight = grad_bias = None
    if output_mask[0] and weight is not None:
        _check(
            weight.dim() == 2 and weight.shape[0] == out and weight.dtype == dtype,
            f"linear_backward: weight must be [{out}, in_features] of dtype {dtype} like grad_output, got "
            f"{list(weight.shape)} of dtype {weight.dtype}",
        )
        grad_input = torch.empty([*grad_output.shape[:-1], weight.shape[1]], dtype=dtype, device=device)
        if grad_input.numel() > 0:
            c = _contiguous(grad_input)
            run(Product(rows, weight.shape[1], out, [], [], matrix(grad, 0), matrix(weight, 0), c))
    if output_mask[1] and input is not None:
        x = _as_rows(input)
        _check(
            x.shape[0] == rows and x.dtype == dtype,
            f"linear_backward: input must have {rows} rows of dtype {dtype} like grad_output, got shape "
            f"{list(input.shape)} of dtype {input.dtype}",
        )
        grad_weight = torch.empty([out, x.shape[1]], dtype=dtype, device=device)
        if grad_weight.numel() > 0:
            c = _contiguous(grad_weight)
            run(Product(out, x.shape[1], rows, [], [], matrix(grad, 0).turned(), matrix(x, 0), c))
    if output_mask[2]:
        grad_bias = column_sum(grad)
    return grad_input, grad_weight, grad_bias


@lru_cache(maxsize=16)
def gradient_variant(dtype: torch.dtype, in_vectors: bool) -> Variant:
    types = dict.fromkeys(("grad", "saved", "out"), f"*{type_name(dtype)}") | {"count": "i64", "activation": "i32"}
    constants = (("BLOCK", _BLOCK), ("VECTOR", in_vectors))
    return Variant(activation_backward, tuple(types.items()), constants, 4, 2)


def _activation_backward(grad_output: Tensor, saved: Tensor, activation: str) -> Tensor:
    if activation not in CODES:
        raise ValueError(f"activation must be one of {', '.join(CODES)}, got '{activation}'")
    _check(
        grad_output.shape == saved.shape and grad_output.dtype == saved.dtype,
        f"activation_backward: saved must have grad_output's shape {list(grad_output.shape)} and dtype "
        f"{grad_output.dtype}, got {list(saved.shape)} and {saved.dtype}",
    )
    # Any dense layout will do, as long as all three have it: channels_last stays channels_last.
    out = torch.empty_like(saved)
    grad, x = (t if t.stride() == out.stride() else torch.empty_like(out).copy_(t) for t in (grad_output, saved))
    count = out.numel()
    in_vectors = count * out.itemsize % 16 == 0 and all(t.data_ptr() % 16 == 0 for t in (grad, x, out))
    arguments = {"grad": grad, "saved": x, "out": out, "count": count, "activation": CODES[activation]}
    launch(gradient_variant(out.dtype, in_vectors), (cdiv(count, _BLOCK),), arguments)
    return out


def variants(architecture: int) -> list[Variant]:
    """The products' variants are those of matmul, which are compiled once for both."""
    found = [sums_variant(torch.float32, dtype, 1) for dtype in DTYPES]
    found += [sums_variant(dtype, torch.float32, 16 // dtype.itemsize) for dtype in DTYPES]
    found += [
        sums_variant(dtype, result, unit)
        for dtype in DTYPES
        for result in dict.fromkeys((dtype, torch.float32))
        for unit in (1, 0)
    ]
    found += [gradient_variant(dtype, in_vectors) for dtype in DTYPES for in_vectors in (True, False)]
    return list(dict.fromkeys([*product_variants(architecture), *found]))


implementations: dict[str, Callable[..., Any]] = {
    "linear_forward": _forward,
    "linear_backward": _backward,
    "activation_backward": _activation_backward,
}

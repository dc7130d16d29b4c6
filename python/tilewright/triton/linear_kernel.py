"""Column sums (the gradient of a bias) and the gradient of activations."""

import triton
import triton.language as tl

from .activation import activation_gradient


@triton.jit(
    do_not_specialize=["rows", "cols", "row_stride", "col_stride", "rows_per_chunk"],
    do_not_specialize_on_alignment=["x", "out"],
)
def column_sums(
    x,
    out,
    rows: tl.int64,
    cols: tl.int64,
    row_stride: tl.int64,
    col_stride: tl.int64,
    rows_per_chunk: tl.int64,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """out[chunk, cols] = the sums over a chunk of rows, ROWS at a time in one order; grid [columns, chunks].

    UNIT: elements of an access along columns: 16 bytes of aligned rows, or 1; 0 where columns are not neighbours.
    """
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    chunk = tl.program_id(1).to(tl.int64)
    if UNIT > 0:
        col_stride = 1
    if UNIT > 1:  # changes no value, and tells the compiler what divides what
        row_stride, cols = row_stride // UNIT * UNIT, cols // UNIT * UNIT
    first = chunk * rows_per_chunk
    last = tl.minimum(first + rows_per_chunk, rows)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        pointers = x + row * row_stride + (column * col_stride)[None, :]
        if UNIT > 1:
            pointers = tl.multiple_of(pointers, (1, 16))
        block = tl.load(pointers, mask=(row < last) & (column < cols)[None, :], other=0.0)
        sums += block.to(tl.float32)
    tl.store(out + chunk * cols + column, tl.sum(sums, 0).to(out.dtype.element_ty), mask=column < cols)


@triton.jit(do_not_specialize=["count", "activation"], do_not_specialize_on_alignment=["grad", "saved", "out"])
def activation_backward(
    grad, saved, out, count: tl.int64, activation: tl.int32, BLOCK: tl.constexpr, VECTOR: tl.constexpr
):
    """out = grad * act'(saved), element by element; with VECTOR bases and count are multiples of 16 bytes."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    element = tl.arange(0, BLOCK)
    left = count - first
    grad_start, saved_start, out_start = grad + first, saved + first, out + first
    if VECTOR:
        UNIT: tl.constexpr = 128 // out.dtype.element_ty.primitive_bitwidth
        left = left // UNIT * UNIT
        grad_start, saved_start = tl.multiple_of(grad_start, 16), tl.multiple_of(saved_start, 16)
        out_start = tl.multiple_of(out_start, 16)
    inside = element < left
    x = tl.load(saved_start + element, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad_start + element, mask=inside, other=0.0).to(tl.float32)
    slope = activation_gradient(x, activation)
    # relu and relu6 choose: a product with 0 would make an infinite gradient NaN.
    g = tl.where(((activation == 1) | (activation == 2)) & (slope == 0), 0.0, g * slope)
    tl.store(out_start + element, g.to(out.dtype.element_ty), mask=inside)

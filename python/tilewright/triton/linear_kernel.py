"""Column sums (the gradient of a bias) and the gradient of activations."""

import triton
import triton.language as tl


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
    CONTIGUOUS: tl.constexpr,
):
    """out[chunk, cols] = the sums over a chunk of rows, ROWS at a time in ascending order; grid [columns, chunks]."""
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    chunk = tl.program_id(1).to(tl.int64)
    if CONTIGUOUS:
        col_stride = 1
    first = chunk * rows_per_chunk
    last = tl.minimum(first + rows_per_chunk, rows)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        pointers = x + row * row_stride + (column * col_stride)[None, :]
        block = tl.load(pointers, mask=(row < last) & (column < cols)[None, :], other=0.0)
        total += tl.sum(block.to(tl.float32), 0)
    tl.store(out + chunk * cols + column, total.to(out.dtype.element_ty), mask=column < cols)

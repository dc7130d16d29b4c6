"""The second launch of a product whose K was cut into splits: their sums, in order, and the epilogue."""

import triton
import triton.language as tl

from .activation import activate
from .matmul_kernel import batch_offset

SIZES = (
    *("M", "N", "batch", "batch1", "batch2", "splits"),
    *("c_row", "c_col", "c_batch0", "c_batch1", "c_batch2"),
    *("addend_row", "addend_col", "addend_batch0", "addend_batch1", "addend_batch2"),
)
FLAGS = ("activation", "has_addend", "saves_pre")


@triton.jit(
    do_not_specialize=[*SIZES, *FLAGS, "alpha", "beta"],
    do_not_specialize_on_alignment=["c", "addend", "pre", "partial"],
)
def sum_splits(
    c,
    addend,
    pre,
    partial,
    alpha: tl.float32,
    beta: tl.float32,
    M: tl.int64,
    N: tl.int64,
    batch: tl.int64,
    batch1: tl.int64,
    batch2: tl.int64,
    splits: tl.int64,
    c_row: tl.int64,
    c_col: tl.int64,
    c_batch0: tl.int64,
    c_batch1: tl.int64,
    c_batch2: tl.int64,
    addend_row: tl.int64,
    addend_col: tl.int64,
    addend_batch0: tl.int64,
    addend_batch1: tl.int64,
    addend_batch2: tl.int64,
    activation: tl.int32,
    has_addend: tl.int32,
    saves_pre: tl.int32,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """C from partial[split, batch, M, N]: splits are added in ascending order, ROWS at a time."""
    elements = batch * M * N
    index = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = index < elements
    rows = tl.arange(0, ROWS)[:, None].to(tl.int64)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, splits, ROWS):
        split = first + rows
        mask = (split < splits) & inside[None, :]
        total += tl.sum(tl.load(partial + split * elements + index[None, :], mask=mask, other=0.0), 0)
    n, row = index % N, index // N
    m, item = row % M, row // M
    value = total * alpha
    if has_addend != 0:
        start = batch_offset(item, batch1, batch2, addend_batch0, addend_batch1, addend_batch2)
        other = tl.load(addend + start + m * addend_row + n * addend_col, mask=inside, other=0.0)
        value += beta * other.to(tl.float32)
    start = batch_offset(item, batch1, batch2, c_batch0, c_batch1, c_batch2) + m * c_row + n * c_col
    if saves_pre != 0:
        tl.store(pre + start, value.to(pre.dtype.element_ty), mask=inside)
    value = activate(value, activation)
    tl.store(c + start, value.to(c.dtype.element_ty), mask=inside)

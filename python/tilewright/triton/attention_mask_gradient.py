"""Gradient of an additive mask: dmask = dS, summed over whatever the mask is broadcast over.

A program owns a tile of the gradient and goes in order through all that share it: heads, and blocks of queries or keys
where the mask has one row or one column. Where that leaves processors idle the walk is cut in parts, whose sums are
added in order afterwards. P and dP are made once more (two products), so no [Sq, Sk] memory per head exists.
"""

import triton.language as tl

from .attention_backward import gradient_tile
from .attention_schedule import mask_head_in_kernel
from .attention_tiles import attention_kernel, head_pointer, load_rows, mask_offset, units_of


@attention_kernel
def attention_mask_gradient_kernel(
    query, key, value, grad_output, mask, seed, logsumexp, delta, grad_mask,
    q_batch: tl.int64, q_head: tl.int64, q_row: tl.int64,
    k_batch: tl.int64, k_head: tl.int64, k_row: tl.int64,
    v_batch: tl.int64, v_head: tl.int64, v_row: tl.int64,
    d_batch: tl.int64, d_head: tl.int64, d_row: tl.int64,
    mask_outer: tl.int64, mask_inner: tl.int64, mask_row: tl.int32, mask_col: tl.int32, mask_inner_heads: tl.int32,
    mask_kind: tl.int32, dropout: tl.int32, threshold_high: tl.int32, threshold_low: tl.int32,
    heads: tl.int32, group: tl.int32, queries: tl.int32, keys: tl.int32, size: tl.int32, value_size: tl.int32,
    causal: tl.int32, slices: tl.int32, shared0: tl.int32, kept1: tl.int32, shared1: tl.int32,
    mask_rows: tl.int32, mask_columns: tl.int32, row_tiles: tl.int32, column_tiles: tl.int32, row_walk: tl.int32,
    column_walk: tl.int32,
    items: tl.int32, items_per_part: tl.int32, parts: tl.int32,
    scale: tl.float32, factor: tl.float32, keep_scale: tl.float32,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs: part fastest, then column tile, row tile, slice. row_tiles x row_walk blocks cover the queries, one of
    them being 1; so do column_tiles x column_walk the keys. grad_mask: float32 [parts, slices, rows, columns].
    """
    UNIT: tl.constexpr = units_of(query.dtype.element_ty)
    part = tl.program_id(0) % parts
    tile = tl.program_id(0) // parts
    column_tile = tile % column_tiles
    row_tile = tile // column_tiles % row_tiles
    of_slice = tile // column_tiles // row_tiles
    size *= UNIT
    value_size *= UNIT
    seed_value = tl.load(seed)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for item in tl.range(part * items_per_part, tl.minimum(items, (part + 1) * items_per_part)):
        first_column = (column_tile + item % column_walk) * BLOCK_N
        first_row = (row_tile + item // column_walk % row_walk) * BLOCK_M
        index = mask_head_in_kernel(of_slice, item // column_walk // row_walk, shared0, kept1, shared1)
        batch = index // heads
        head = index % heads
        key_head = head // group
        q_base = head_pointer(query, batch, head, q_batch, q_head, UNIT)
        d_base = head_pointer(grad_output, batch, head, d_batch, d_head, UNIT)
        k_base = head_pointer(key, batch, key_head, k_batch, k_head, UNIT)
        v_base = head_pointer(value, batch, key_head, v_batch, v_head, UNIT)
        q = load_rows(q_base, batch, head, first_row, queries, size, q_row * UNIT, BLOCK_M, BLOCK_D, False, True)
        d = load_rows(d_base, batch, head, first_row, queries, value_size, d_row * UNIT, BLOCK_M, BLOCK_D, False, True)
        k = load_rows(k_base, batch, key_head, first_column, keys, size, k_row * UNIT, BLOCK_N, BLOCK_D, False, True)
        v = load_rows(v_base, batch, key_head, first_column, keys, value_size, v_row * UNIT, BLOCK_N, BLOCK_D, False,
                      True)  # fmt: skip
        rows = first_row + tl.arange(0, BLOCK_M)
        columns = first_column + tl.arange(0, BLOCK_N)
        row_id = index.to(tl.int64) * queries + rows
        lse = tl.load(logsumexp + row_id, mask=rows < queries, other=float("inf"))
        its_delta = tl.load(delta + row_id, mask=rows < queries, other=0.0)
        mask_base = mask_offset(index, mask_inner_heads, mask_outer, mask_inner)
        mask_base += tl.cast(first_row, tl.int64) * mask_row
        mask_offsets = tl.arange(0, BLOCK_M) * mask_row
        acc += gradient_tile(
            q, d, k, v, lse, its_delta, rows, columns, queries, keys, items > 0, mask, mask_base, mask_offsets,
            mask_col, mask_kind, row_id * keys, first_column, seed_value, threshold_high, threshold_low, causal,
            dropout, scale, factor, keep_scale, True, PRECISION)  # fmt: skip
    # One row or column stands for all that were walked over.
    if mask_rows == 1:
        acc = tl.broadcast_to(tl.sum(acc, 0)[None, :], [BLOCK_M, BLOCK_N])
    if mask_columns == 1:
        acc = tl.broadcast_to(tl.sum(acc, 1)[:, None], [BLOCK_M, BLOCK_N])
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    line = (tl.cast(part, tl.int64) * slices + of_slice) * mask_rows + rows
    inside = (rows < mask_rows)[:, None] & (columns < mask_columns)[None, :]
    tl.store(grad_mask + line[:, None] * mask_columns + columns[None, :], acc, mask=inside)

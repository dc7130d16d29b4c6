"""Attention forward for few queries over many keys (decoding): keys are split over programs.

The queries of all heads that share a key head are packed into one tile of rows, row r = (head of the group r // Sq,
query r % Sq), so keys and values are read once per group. Each chunk of keys leaves an unnormalised output with its max
and sum; a second launch merges the chunks in order, so the result is the same every time. One chunk needs no merge.
"""

import triton
import triton.language as tl

from .attention_forward import finish, softmax_step
from .attention_tiles import (
    attention_kernel,
    head_pointer,
    keep_tile,
    load_rows,
    mask_offset,
    mask_tile,
    units_of,
)


@triton.jit
def _store_packed(pointer, tile, row_offset, size, inside, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    pointers = pointer + (row_offset[:, None] + column[None, :])
    tl.store(pointers, tile.to(pointer.dtype.element_ty), mask=inside[:, None] & (column[None, :] < size))


@attention_kernel
def attention_decode_kernel(
    query, key, value, mask, seed, output, logsumexp, part_output, part_peak, part_total,
    q_batch: tl.int64, q_head: tl.int64, q_row: tl.int64,
    k_batch: tl.int64, k_head: tl.int64, k_row: tl.int64,
    v_batch: tl.int64, v_head: tl.int64, v_row: tl.int64,
    o_batch: tl.int64, o_head: tl.int64, o_row: tl.int64,
    mask_outer: tl.int64, mask_inner: tl.int64, mask_row: tl.int32, mask_col: tl.int32, mask_inner_heads: tl.int32,
    mask_kind: tl.int32, dropout: tl.int32, threshold_high: tl.int32, threshold_low: tl.int32,
    total_heads: tl.int32, heads: tl.int32, group: tl.int32, queries: tl.int32, keys: tl.int32, size: tl.int32,
    value_size: tl.int32, tiles: tl.int32, chunks: tl.int32, chunk: tl.int32, causal: tl.int32,
    scale: tl.float32, factor: tl.float32, natural: tl.float32, keep_scale: tl.float32,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """tiles: of BLOCK_M packed rows in a key head. Programs: key head slowest, then tile, then chunk."""
    UNIT: tl.constexpr = units_of(output.dtype.element_ty)
    part = tl.program_id(0) % chunks
    tile = tl.program_id(0) // chunks % tiles
    shared = tl.program_id(0) // chunks // tiles
    key_heads = heads // group
    batch = shared // key_heads
    key_head = shared % key_heads
    packed = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_rows = packed < group * queries
    head = key_head * group + packed // queries
    row = packed % queries
    index = batch * heads + head
    row_id = index.to(tl.int64) * queries + row
    size *= UNIT
    value_size *= UNIT
    column = tl.arange(0, BLOCK_D)
    q_offset = (batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head + row.to(tl.int64) * q_row) * UNIT
    q_inside = inside_rows[:, None] & (column[None, :] < size)
    q = tl.load(tl.multiple_of(query + (q_offset[:, None] + column[None, :]), [1, 16]), mask=q_inside, other=0.0)
    k_source = head_pointer(key, batch, key_head, k_batch, k_head, UNIT)
    v_source = head_pointer(value, batch, key_head, v_batch, v_head, UNIT)
    mask_rows = mask_offset(index, mask_inner_heads, mask_outer, mask_inner) + row.to(tl.int64) * mask_row
    seed_value = tl.load(seed)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], -float("inf"), tl.float32)
    end = tl.minimum(keys, (part + 1) * chunk)
    if causal != 0:
        end = tl.minimum(end, queries)
    for start in tl.range(part * chunk, end, BLOCK_N):
        k = load_rows(k_source, batch, key_head, start, keys, size, k_row * UNIT, BLOCK_N, BLOCK_D, False, True)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        at = start + tl.arange(0, BLOCK_N)
        if mask_kind != 0:
            offsets = mask_rows[:, None] + at.to(tl.int64)[None, :] * mask_col
            logits += mask_tile(mask, mask_kind, 0, offsets, inside_rows[:, None] & (at < keys)[None, :], q.dtype)
        visible = (at < keys)[None, :] & ((causal == 0) | (at[None, :] <= row[:, None]))
        logits = tl.where(visible, logits, -float("inf"))
        weights, peak, total, shrink = softmax_step(logits, peak, total, factor, True)
        if dropout != 0:
            kept = keep_tile(row_id * keys, start, seed_value, threshold_high, threshold_low, BLOCK_M, BLOCK_N)
            weights = tl.where(kept, weights, 0.0)
        v = load_rows(v_source, batch, key_head, start, keys, value_size, v_row * UNIT, BLOCK_N, BLOCK_D, False, True)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    if chunks == 1:
        result, saved = finish(acc, total, peak, natural, keep_scale)
        o_offset = (batch.to(tl.int64) * o_batch + head.to(tl.int64) * o_head + row.to(tl.int64) * o_row) * UNIT
        _store_packed(output, result, o_offset, value_size, inside_rows, BLOCK_D)
        tl.store(logsumexp + row_id, saved, mask=inside_rows)
    else:
        part_row = tl.cast(part, tl.int64) * total_heads * queries + row_id
        _store_packed(part_output, acc, part_row * value_size, value_size, inside_rows, BLOCK_D)
        tl.store(part_peak + part_row, peak, mask=inside_rows)
        tl.store(part_total + part_row, total, mask=inside_rows)


@attention_kernel
def attention_merge_kernel(
    part_output, part_peak, part_total, output, logsumexp,
    o_batch: tl.int64, o_head: tl.int64, o_row: tl.int64,
    heads: tl.int32, queries: tl.int32, value_size: tl.int32, chunks: tl.int32, rows: tl.int64,
    factor: tl.float32, natural: tl.float32, keep_scale: tl.float32,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """ROWS rows (head, query) of the result from their chunks, in the chunks' order."""
    UNIT: tl.constexpr = units_of(output.dtype.element_ty)
    row_id = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row_id < rows
    value_size *= UNIT
    column = tl.arange(0, BLOCK_D)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    for part in tl.range(0, chunks):
        part_row = part * rows + row_id
        its_peak = tl.load(part_peak + part_row, mask=inside, other=-float("inf"))
        its_total = tl.load(part_total + part_row, mask=inside, other=0.0)
        pointers = part_output + (part_row * value_size)[:, None] + column[None, :]
        share = tl.load(pointers, mask=inside[:, None] & (column[None, :] < value_size), other=0.0)
        raised = tl.maximum(peak, its_peak)
        origin = tl.where(raised == -float("inf"), 0.0, raised)
        shrink = tl.exp2((peak - origin) * factor)
        its_shrink = tl.exp2((its_peak - origin) * factor)
        total = total * shrink + its_total * its_shrink
        acc = acc * shrink[:, None] + share * its_shrink[:, None]
        peak = raised
    result, saved = finish(acc, total, peak, natural, keep_scale)
    index = row_id // queries
    o_offset = (index // heads * o_batch + index % heads * o_head + row_id % queries * o_row) * UNIT
    _store_packed(output, result, o_offset, value_size, inside, BLOCK_D)
    tl.store(logsumexp + row_id, saved, mask=inside)

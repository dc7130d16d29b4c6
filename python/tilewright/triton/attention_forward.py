"""Attention forward: a program owns a tile of queries of one head and walks over its keys, softmax built up on the way.

    keys    0 .......... full .... end          S = Q K^T, P = exp2(S - max), O = O + P V with a running max and sum
          +------+------+------+
    tile  | free | free |\\\\ mask|              free: every query attends to every key, no comparison is made
          +------+------+------+

docs/attention.md derives it; :mod:`tilewright.triton.attention_schedule` has the ranges.
"""

import triton
import triton.language as tl

from .attention_schedule import key_range_in_kernel, tile_of_in_kernel
from .attention_tiles import (
    attention_kernel,
    head_pointer,
    keep_tile,
    load_rows,
    mask_offset,
    mask_tile,
    store_rows,
    units_of,
)


@triton.jit
def softmax_step(logits, peak, total, factor, GENERAL: tl.constexpr):
    """(P, new peak, new total, shrink of what was summed before) for a tile of logits; factor takes them to base 2."""
    raised = tl.maximum(peak, tl.max(logits, 1))
    # A row with nothing attended to yet keeps -Inf as its max; measured from 0 its weights are 0, not NaN.
    origin = tl.where(raised == -float("inf"), 0.0, raised)
    shrink = tl.exp2((peak - origin) * factor)
    if GENERAL:
        # The difference first: a mask may hold the lowest finite value, whose product with log2(e) is infinite.
        weights = tl.exp2((logits - origin[:, None]) * factor)
    else:
        weights = tl.exp2(logits * factor - (origin * factor)[:, None])
    return weights, raised, total * shrink + tl.sum(weights, 1), shrink


@triton.jit
def finish(acc, total, peak, natural, keep_scale):
    """(output, logsumexp) of rows whose keys have all been seen; +Inf where there was none to attend to."""
    nothing = total == 0.0
    share = tl.where(nothing, 0.0, keep_scale / tl.where(nothing, 1.0, total))
    logsumexp = tl.where(nothing, float("inf"), peak * natural + tl.log(tl.where(nothing, 1.0, total)))
    return acc * share[:, None], logsumexp


@attention_kernel
def attention_forward_kernel(
    query, key, value, mask, seed, output, logsumexp,
    q_batch: tl.int64, q_head: tl.int64, q_row: tl.int64,
    k_batch: tl.int64, k_head: tl.int64, k_row: tl.int64,
    v_batch: tl.int64, v_head: tl.int64, v_row: tl.int64,
    o_batch: tl.int64, o_head: tl.int64, o_row: tl.int64,
    mask_outer: tl.int64, mask_inner: tl.int64, mask_row: tl.int32, mask_col: tl.int32, mask_inner_heads: tl.int32,
    mask_kind: tl.int32, dropout: tl.int32, threshold_high: tl.int32, threshold_low: tl.int32,
    total_heads: tl.int32, heads: tl.int32, group: tl.int32, queries: tl.int32, keys: tl.int32, size: tl.int32,
    value_size: tl.int32, blocks: tl.int32, section: tl.int32, causal: tl.int32,
    scale: tl.float32, factor: tl.float32, natural: tl.float32, keep_scale: tl.float32,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GENERAL: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    UNIT: tl.constexpr = units_of(output.dtype.element_ty)
    index, block = tile_of_in_kernel(tl.program_id(0), total_heads, blocks, section, True)
    batch = index // heads
    head = index % heads
    key_head = head // group
    first = block * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    size *= UNIT
    value_size *= UNIT
    if TMA:
        q_source = query
        k_source = key
        v_source = value
    else:
        q_source = head_pointer(query, batch, head, q_batch, q_head, UNIT)
        k_source = head_pointer(key, batch, key_head, k_batch, k_head, UNIT)
        v_source = head_pointer(value, batch, key_head, v_batch, v_head, UNIT)
    seed_value = tl.load(seed)
    row_element = (index.to(tl.int64) * queries + rows) * keys
    mask_base = mask_offset(index, mask_inner_heads, mask_outer, mask_inner) + first.to(tl.int64) * mask_row
    mask_offsets = tl.arange(0, BLOCK_M) * mask_row
    q = load_rows(q_source, batch, head, first, queries, size, q_row * UNIT, BLOCK_M, BLOCK_D, TMA, True)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], -float("inf"), tl.float32)
    full, end = key_range_in_kernel(first, BLOCK_M, keys, BLOCK_N, causal)
    for start in tl.range(0, end, BLOCK_N):
        k = load_rows(k_source, batch, key_head, start, keys, size, k_row * UNIT, BLOCK_N, BLOCK_D, TMA, True)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        column = start + tl.arange(0, BLOCK_N)
        if GENERAL:
            logits = logits * scale
            if mask_kind != 0:
                offsets = mask_offsets[:, None] + (column * mask_col)[None, :]
                inside = (rows < queries)[:, None] & (column < keys)[None, :]
                logits += mask_tile(mask, mask_kind, mask_base, offsets, inside, q.dtype)
        if start >= full:
            visible = (column < keys)[None, :] & ((causal == 0) | (column[None, :] <= rows[:, None]))
            logits = tl.where(visible, logits, -float("inf"))
        weights, peak, total, shrink = softmax_step(logits, peak, total, factor, GENERAL)
        if GENERAL:  # noqa: SIM102 (a constant, then a branch)
            if dropout != 0:
                kept = keep_tile(row_element, start, seed_value, threshold_high, threshold_low, BLOCK_M, BLOCK_N)
                weights = tl.where(kept, weights, 0.0)
        v = load_rows(v_source, batch, key_head, start, keys, value_size, v_row * UNIT, BLOCK_N, BLOCK_D, TMA, True)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    result, saved = finish(acc, total, peak, natural, keep_scale)
    o_base = head_pointer(output, batch, head, o_batch, o_head, UNIT)
    store_rows(o_base, result, first, queries, value_size, o_row * UNIT, BLOCK_M, BLOCK_D)
    tl.store(logsumexp + index.to(tl.int64) * queries + rows, saved, mask=rows < queries)

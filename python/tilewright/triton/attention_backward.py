"""Attention backward: delta, then the gradients of key and value (a program owns a tile of keys), then that of query
(a program owns a tile of queries). Nothing is added by two programs, so there are no atomics and no order to wait for.

    delta = rowsum(dO * O);  P = e^(S - logsumexp);  dP = dO V^T;  dS = P * (dP - delta)
    dV = P^T dO,  dK = scale dS^T Q                four products a tile
    dQ = scale dS K                                three

docs/attention.md derives it and says why these are seven products and not five with an ordered reduction of dQ.
"""

import triton
import triton.language as tl

from .attention_schedule import key_range_in_kernel, query_range_in_kernel, tile_of_in_kernel
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

_LOG2E = tl.constexpr(1.4426950408889634)


@attention_kernel
def attention_delta_kernel(
    output, grad_output, delta,
    o_batch: tl.int64, o_head: tl.int64, o_row: tl.int64, d_batch: tl.int64, d_head: tl.int64, d_row: tl.int64,
    heads: tl.int32, queries: tl.int32, value_size: tl.int32, blocks: tl.int32,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """delta[head, query] = sum over the row of dO * O."""
    UNIT: tl.constexpr = units_of(output.dtype.element_ty)
    index = tl.program_id(0) // blocks
    first = tl.program_id(0) % blocks * ROWS
    batch = index // heads
    head = index % heads
    value_size *= UNIT
    o_base = head_pointer(output, batch, head, o_batch, o_head, UNIT)
    d_base = head_pointer(grad_output, batch, head, d_batch, d_head, UNIT)
    o = load_rows(o_base, batch, head, first, queries, value_size, o_row * UNIT, ROWS, BLOCK_D, False, True)
    d = load_rows(d_base, batch, head, first, queries, value_size, d_row * UNIT, ROWS, BLOCK_D, False, True)
    rows = first + tl.arange(0, ROWS)
    sums = tl.sum(o.to(tl.float32) * d.to(tl.float32), 1)
    tl.store(delta + index.to(tl.int64) * queries + rows, sums, mask=rows < queries)


@triton.jit
def weights_again(logits, logsumexp, factor, GENERAL: tl.constexpr):
    """P = e^(logit - logsumexp); logsumexp as it broadcasts, +Inf where nothing was attended to."""
    if GENERAL:
        # The difference first: a large logsumexp must not be rounded once more. Above 0 it is rounding alone.
        exponent = logits - logsumexp
        exponent = tl.where(exponent > 0.0, 0.0, exponent) * _LOG2E
    else:
        exponent = logits * factor - logsumexp * _LOG2E
    return tl.exp2(exponent)


@triton.jit
def _queries_step(k, v, query, grad_output, logsumexp, delta, batch, head, start, dk, dv, columns, first, queries,
                  keys, size, value_size, q_row, d_row, mask, mask_base, mask_col, mask_row, mask_kind, head_element,
                  seed, high, low, full, dropout, scale, factor, keep_scale, BLOCK_M: tl.constexpr,
                  BLOCK_D: tl.constexpr, GENERAL: tl.constexpr, TMA: tl.constexpr,
                  PRECISION: tl.constexpr):  # fmt: skip
    """One block of queries, seen from a tile of keys: all tiles are [keys, queries]. Before ``full`` blocks cross the
    diagonal.
    """
    q = load_rows(query, batch, head, start, queries, size, q_row, BLOCK_M, BLOCK_D, TMA, True)
    rows = start + tl.arange(0, BLOCK_M)
    inside = rows < queries
    lse = tl.load(logsumexp + rows, mask=inside, other=float("inf"))
    logits = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    if GENERAL:
        logits = logits * scale
        if mask_kind != 0:
            offsets = (columns * mask_col)[:, None] + (tl.arange(0, BLOCK_M) * mask_row)[None, :]
            readable = (columns < keys)[:, None] & inside[None, :]
            logits += mask_tile(
                mask, mask_kind, mask_base + tl.cast(start, tl.int64) * mask_row, offsets, readable, k.dtype
            )
    if start < full:
        logits = tl.where(columns[:, None] <= rows[None, :], logits, -float("inf"))
    weights = weights_again(logits, lse[None, :], factor, GENERAL)
    d = load_rows(grad_output, batch, head, start, queries, value_size, d_row, BLOCK_M, BLOCK_D, TMA, True)
    if GENERAL:
        share = tl.full(weights.shape, 1.0, tl.float32)
        if dropout != 0:
            elements = head_element + rows.to(tl.int64) * keys
            kept = keep_tile(elements, first, seed, high, low, BLOCK_M, weights.shape[0])
            share = tl.where(tl.trans(kept), keep_scale, 0.0)
        dv = tl.dot((weights * share).to(d.dtype), d, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(d), input_precision=PRECISION) * share
    else:
        dv = tl.dot(weights.to(d.dtype), d, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(d), input_precision=PRECISION)
    ds = weights * (dp - tl.load(delta + rows, mask=inside, other=0.0)[None, :])
    dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@attention_kernel
def attention_backward_keys_kernel(
    query, key, value, grad_output, mask, seed, logsumexp, delta, grad_key, grad_value,
    q_batch: tl.int64, q_head: tl.int64, q_row: tl.int64,
    k_batch: tl.int64, k_head: tl.int64, k_row: tl.int64,
    v_batch: tl.int64, v_head: tl.int64, v_row: tl.int64,
    d_batch: tl.int64, d_head: tl.int64, d_row: tl.int64,
    gk_batch: tl.int64, gk_head: tl.int64, gk_row: tl.int64,
    gv_batch: tl.int64, gv_head: tl.int64, gv_row: tl.int64,
    mask_outer: tl.int64, mask_inner: tl.int64, mask_row: tl.int32, mask_col: tl.int32, mask_inner_heads: tl.int32,
    mask_kind: tl.int32, dropout: tl.int32, threshold_high: tl.int32, threshold_low: tl.int32,
    total_heads: tl.int32, heads: tl.int32, group: tl.int32, queries: tl.int32, keys: tl.int32, size: tl.int32,
    value_size: tl.int32, blocks: tl.int32, section: tl.int32, causal: tl.int32, wants_key: tl.int32,
    wants_value: tl.int32, scale: tl.float32, factor: tl.float32, keep_scale: tl.float32,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GENERAL: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of keys of a key head, over the query heads of its group in order; total_heads counts key heads."""
    UNIT: tl.constexpr = units_of(grad_key.dtype.element_ty)
    shared, block = tile_of_in_kernel(tl.program_id(0), total_heads, blocks, section, False)
    key_heads = heads // group
    batch = shared // key_heads
    key_head = shared % key_heads
    first = block * BLOCK_N
    columns = first + tl.arange(0, BLOCK_N)
    size *= UNIT
    value_size *= UNIT
    if TMA:
        k_source = key
        v_source = value
        q_source = query
        d_source = grad_output
    else:
        k_source = head_pointer(key, batch, key_head, k_batch, k_head, UNIT)
        v_source = head_pointer(value, batch, key_head, v_batch, v_head, UNIT)
    k = load_rows(k_source, batch, key_head, first, keys, size, k_row * UNIT, BLOCK_N, BLOCK_D, TMA, True)
    v = load_rows(v_source, batch, key_head, first, keys, value_size, v_row * UNIT, BLOCK_N, BLOCK_D, TMA, True)
    seed_value = tl.load(seed)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    begin, full = query_range_in_kernel(first, BLOCK_N, BLOCK_M, causal)
    for member in tl.range(0, group):
        head = key_head * group + member
        index = batch * heads + head
        if not TMA:
            q_source = head_pointer(query, batch, head, q_batch, q_head, UNIT)
            d_source = head_pointer(grad_output, batch, head, d_batch, d_head, UNIT)
        lse_base = logsumexp + index.to(tl.int64) * queries
        delta_base = delta + index.to(tl.int64) * queries
        mask_base = mask_offset(index, mask_inner_heads, mask_outer, mask_inner)
        head_element = index.to(tl.int64) * queries * keys
        for start in tl.range(begin, queries, BLOCK_M):
            dk, dv = _queries_step(
                k, v, q_source, d_source, lse_base, delta_base, batch, head, start, dk, dv, columns, first, queries,
                keys, size, value_size, q_row * UNIT, d_row * UNIT, mask, mask_base, mask_col, mask_row, mask_kind,
                head_element, seed_value, threshold_high, threshold_low, full, dropout, scale, factor, keep_scale,
                BLOCK_M, BLOCK_D, GENERAL, TMA, PRECISION)  # fmt: skip
    if wants_key != 0:
        base = head_pointer(grad_key, batch, key_head, gk_batch, gk_head, UNIT)
        store_rows(base, dk * scale, first, keys, size, gk_row * UNIT, BLOCK_N, BLOCK_D)
    if wants_value != 0:
        base = head_pointer(grad_value, batch, key_head, gv_batch, gv_head, UNIT)
        store_rows(base, dv, first, keys, value_size, gv_row * UNIT, BLOCK_N, BLOCK_D)


@triton.jit
def gradient_tile(q, d, k, v, lse, its_delta, rows, columns, queries, keys, crosses_edge, mask, mask_base, mask_offsets,
                  mask_col, mask_kind, row_element, first_column, seed, high, low, causal, dropout, scale, factor,
                  keep_scale, GENERAL: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """dS of a tile [queries, keys]. crosses_edge: the diagonal or the end of the keys."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if GENERAL:
        logits = logits * scale
        if mask_kind != 0:
            inside = (rows < queries)[:, None] & (columns < keys)[None, :]
            offsets = mask_offsets[:, None] + (columns * mask_col)[None, :]
            logits += mask_tile(mask, mask_kind, mask_base, offsets, inside, q.dtype)
    if crosses_edge:
        visible = (columns < keys)[None, :] & ((causal == 0) | (columns[None, :] <= rows[:, None]))
        logits = tl.where(visible, logits, -float("inf"))
    weights = weights_again(logits, lse[:, None], factor, GENERAL)
    dp = tl.dot(d, tl.trans(v), input_precision=PRECISION)
    if GENERAL:  # noqa: SIM102 (a constant, then a branch)
        if dropout != 0:
            kept = keep_tile(row_element, first_column, seed, high, low, weights.shape[0], weights.shape[1])
            dp = tl.where(kept, dp * keep_scale, 0.0)
    return weights * (dp - its_delta[:, None])


@attention_kernel
def attention_backward_queries_kernel(
    query, key, value, grad_output, mask, seed, logsumexp, delta, grad_query,
    q_batch: tl.int64, q_head: tl.int64, q_row: tl.int64,
    k_batch: tl.int64, k_head: tl.int64, k_row: tl.int64,
    v_batch: tl.int64, v_head: tl.int64, v_row: tl.int64,
    d_batch: tl.int64, d_head: tl.int64, d_row: tl.int64,
    gq_batch: tl.int64, gq_head: tl.int64, gq_row: tl.int64,
    mask_outer: tl.int64, mask_inner: tl.int64, mask_row: tl.int32, mask_col: tl.int32, mask_inner_heads: tl.int32,
    mask_kind: tl.int32, dropout: tl.int32, threshold_high: tl.int32, threshold_low: tl.int32,
    total_heads: tl.int32, heads: tl.int32, group: tl.int32, queries: tl.int32, keys: tl.int32, size: tl.int32,
    value_size: tl.int32, blocks: tl.int32, section: tl.int32, causal: tl.int32, makes_delta: tl.int32,
    scale: tl.float32, factor: tl.float32, keep_scale: tl.float32,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GENERAL: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of queries over its keys. makes_delta (GENERAL only): write delta = sum of P * dP over keys, no more."""
    UNIT: tl.constexpr = units_of(grad_query.dtype.element_ty)
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
        d_source = grad_output
        k_source = key
        v_source = value
    else:
        q_source = head_pointer(query, batch, head, q_batch, q_head, UNIT)
        d_source = head_pointer(grad_output, batch, head, d_batch, d_head, UNIT)
        k_source = head_pointer(key, batch, key_head, k_batch, k_head, UNIT)
        v_source = head_pointer(value, batch, key_head, v_batch, v_head, UNIT)
    q = load_rows(q_source, batch, head, first, queries, size, q_row * UNIT, BLOCK_M, BLOCK_D, TMA, True)
    d = load_rows(d_source, batch, head, first, queries, value_size, d_row * UNIT, BLOCK_M, BLOCK_D, TMA, True)
    row_id = index.to(tl.int64) * queries + rows
    inside = rows < queries
    lse = tl.load(logsumexp + row_id, mask=inside, other=float("inf"))
    its_delta = tl.where(makes_delta != 0, 0.0, tl.load(delta + row_id, mask=inside, other=0.0))
    seed_value = tl.load(seed)
    mask_base = mask_offset(index, mask_inner_heads, mask_outer, mask_inner) + first.to(tl.int64) * mask_row
    mask_offsets = tl.arange(0, BLOCK_M) * mask_row
    row_element = row_id * keys
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    sums = tl.zeros([BLOCK_M], tl.float32)
    full, end = key_range_in_kernel(first, BLOCK_M, keys, BLOCK_N, causal)
    for start in tl.range(0, end, BLOCK_N):
        k = load_rows(k_source, batch, key_head, start, keys, size, k_row * UNIT, BLOCK_N, BLOCK_D, TMA, True)
        v = load_rows(v_source, batch, key_head, start, keys, value_size, v_row * UNIT, BLOCK_N, BLOCK_D, TMA, True)
        columns = start + tl.arange(0, BLOCK_N)
        ds = gradient_tile(
            q, d, k, v, lse, its_delta, rows, columns, queries, keys, start >= full, mask, mask_base, mask_offsets,
            mask_col, mask_kind, row_element, start, seed_value, threshold_high, threshold_low, causal, dropout,
            scale, factor, keep_scale, GENERAL, PRECISION)  # fmt: skip
        if GENERAL:
            sums += tl.sum(ds, 1)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    if makes_delta != 0:
        tl.store(delta + row_id, sums, mask=inside)
    else:
        base = head_pointer(grad_query, batch, head, gq_batch, gq_head, UNIT)
        store_rows(base, dq * scale, first, queries, size, gq_row * UNIT, BLOCK_M, BLOCK_D)

"""What the attention kernels share inside: tiles of rows, logits with their masks, dropout bits of a tile.

Strides of rows and head sizes reach kernels in units of 16 bytes, so that Triton sees their alignment; the
implementation makes sure that they are (:mod:`tilewright.triton.attention_problem`). Mask strides are in elements.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import triton
import triton.language as tl

from .philox import _words
from .variants import Variant

# Kinds of masks, as kernels take them.
NO_MASK, BOOL_MASK, ELEMENT_MASK, FLOAT_MASK = 0, 1, 2, 3


def attention_kernel(function: Callable[..., Any]) -> Any:
    """``triton.jit`` with the rules of :mod:`tilewright.triton.variants`: annotated arguments are scalars, the others
    are pointers or descriptors.
    """
    parameters = inspect.signature(function).parameters.values()
    scalars = [p.name for p in parameters if p.annotation in (tl.int32, tl.int64, tl.float32)]
    pointers = [p.name for p in parameters if p.annotation is inspect.Parameter.empty]
    return triton.jit(do_not_specialize=scalars, do_not_specialize_on_alignment=pointers)(function)


def variant_of(
    kernel: Any, pointers: Mapping[str, str], constants: Mapping[str, Any], num_warps: int, num_stages: int
) -> Variant:
    """A variant of an attention kernel from its pointers' types; scalars' types are in the annotations."""
    signature = []
    for name, parameter in inspect.signature(kernel.fn).parameters.items():
        if parameter.annotation is tl.constexpr:
            continue
        is_pointer = parameter.annotation is inspect.Parameter.empty
        signature.append((name, pointers[name] if is_pointer else _SCALARS[parameter.annotation]))
    ordered = tuple((name, constants[name]) for name in kernel.arg_names if name in constants)
    return Variant(kernel, tuple(signature), ordered, num_warps, num_stages)


_SCALARS = {tl.int32: "i32", tl.int64: "i64", tl.float32: "fp32"}


# --- rows ------------------------------------------------------------------------------------------------------------
@triton.constexpr_function
def units_of(element):
    """Elements in 16 bytes. (What a jitted function returns is no constant before Triton 3.7.)"""
    return 128 // element.primitive_bitwidth


@triton.jit
def head_pointer(pointer, batch, head, batch_stride, head_stride, UNIT: tl.constexpr):
    """Where a head begins. Strides are in units of 16 bytes."""
    return pointer + (batch.to(tl.int64) * batch_stride + head.to(tl.int64) * head_stride) * UNIT


@triton.jit
def load_rows(source, batch, head, start, limit, size, row_stride, ROWS: tl.constexpr, WIDTH: tl.constexpr,
              TMA: tl.constexpr, BOUNDED: tl.constexpr):  # fmt: skip
    """Rows [start, start + ROWS) of a head as [ROWS, WIDTH]; zeros beyond ``size`` and, if BOUNDED, from ``limit`` on.

    source: the head's pointer, or the descriptor of the whole tensor [batch, head, row, element]; size and row_stride
    in elements, multiples of 16 bytes.
    """
    if TMA:
        tile = tl.reshape(source.load([batch, head, start, 0]), [ROWS, WIDTH])
    else:
        local = tl.arange(0, ROWS)
        column = tl.arange(0, WIDTH)
        # What depends on start is a scalar, so the tile of offsets is made once, outside the loop.
        pointers = source + tl.cast(start, tl.int64) * row_stride + (local[:, None] * row_stride + column[None, :])
        inside = column[None, :] < size
        if BOUNDED:
            inside = inside & (local[:, None] < limit - start)
        tile = tl.load(tl.multiple_of(pointers, [1, 16]), mask=inside, other=0.0)
    return tile


@triton.jit
def store_rows(pointer, tile, start, limit, size, row_stride, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    local = tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    pointers = pointer + tl.cast(start, tl.int64) * row_stride + (local[:, None] * row_stride + column[None, :])
    inside = (column[None, :] < size) & (local[:, None] < limit - start)
    tl.store(tl.multiple_of(pointers, [1, 16]), tile.to(pointer.dtype.element_ty), mask=inside)


# --- masks -----------------------------------------------------------------------------------------------------------
@triton.jit
def mask_offset(head, inner_heads, outer_stride, inner_stride):
    """Where a head's mask begins, in elements: the heads are cut in two dimensions at most (AttentionMask)."""
    return (head // inner_heads).to(tl.int64) * outer_stride + (head % inner_heads).to(tl.int64) * inner_stride


@triton.jit
def mask_tile(mask, kind, base, offsets, inside, ELEMENT: tl.constexpr):
    """What is added to the logits, float32: the mask's numbers, or 0 and -Inf for a bool mask.

    base: int64, of the tile's first row; offsets: int32, from there. Both in elements of the mask. Offsets must hold
    the block's number, else they, widened for each type, are kept in registers over the whole loop.
    """
    if kind == 1:
        attends = tl.load(mask + base + offsets, mask=inside, other=0)
        added = tl.where(attends != 0, 0.0, -float("inf"))
    elif kind == 2:
        elements = mask.to(tl.pointer_type(ELEMENT), bitcast=True) + base
        added = tl.load(elements + offsets, mask=inside, other=0.0).to(tl.float32)
    else:
        floats = mask.to(tl.pointer_type(tl.float32), bitcast=True) + base
        added = tl.load(floats + offsets, mask=inside, other=0.0)
    return added


# --- dropout ---------------------------------------------------------------------------------------------------------
@triton.jit
def _group_bits(group, seed, high, low):
    """The eight decisions of each group of :mod:`tilewright.triton.philox`: bit i is set where element i is kept."""
    zero = tl.full([], 0, tl.uint32)
    w0, w1, w2, w3 = _words(group, seed, zero)
    bits = tl.full(group.shape, 0, tl.uint32)
    equal = tl.full(group.shape, 0, tl.uint32)
    for i in tl.static_range(8):
        word = w0 if i < 2 else (w1 if i < 4 else (w2 if i < 6 else w3))
        number = (word >> (16 * (i % 2))) & 0xFFFF
        bits |= (number >= high).to(tl.uint32) << i
        equal |= (number == high).to(tl.uint32) << i
    if (tl.max(tl.max(equal.to(tl.int32), 1), 0) != 0) & (low != 0):
        w0, w1, w2, w3 = _words(group, seed, zero + 1)
        for i in tl.static_range(8):
            word = w0 if i < 2 else (w1 if i < 4 else (w2 if i < 6 else w3))
            number = (word >> (16 * (i % 2))) & 0xFFFF
            bits &= ~(equal & ((number < low).to(tl.uint32) << i))
    return bits


@triton.jit
def keep_tile(
    row_element, first_column, seed, threshold_high, threshold_low, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """True where an attention weight is kept, [ROWS, COLUMNS]; the bits of :func:`tilewright.triton.philox.keeps`.

    One Philox call gives eight neighbouring columns. Where a row does not begin at a multiple of eight, its bytes are
    put together from two groups.

    Args:
        row_element: int64 [ROWS], logical index of each row's column 0.
        first_column: of the tile, a multiple of 8.
    """
    high = threshold_high.to(tl.uint32)
    low = threshold_low.to(tl.uint32)
    seed = seed.to(tl.int64)
    first = row_element + first_column
    group = (first >> 3)[:, None] + tl.arange(0, COLUMNS // 8)[None, :]
    shift = (first & 7).to(tl.uint32)
    parts = tl.where(tl.max(shift.to(tl.int32), 0) != 0, 2, 1)
    bits = tl.zeros([ROWS, COLUMNS // 8], tl.uint32)
    for part in tl.range(0, parts, loop_unroll_factor=1):
        bits |= _group_bits(group + part, seed, high, low) << tl.cast(8 * part, tl.uint32)
    bits = bits >> shift[:, None]
    lane = tl.arange(0, 8).to(tl.uint32)
    kept = (bits[:, :, None] >> lane[None, None, :]) & 1
    return tl.reshape(kept, [ROWS, COLUMNS]) != 0

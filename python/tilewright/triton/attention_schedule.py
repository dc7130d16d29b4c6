"""Who does what in attention: order of tiles, block ranges under a causal mask, splits. Plain integer maths.

Functions whose names end in ``_in_kernel`` say the same in Triton; tests hold them against the Python ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import triton
import triton.language as tl

# Bytes of keys and values of the heads that run side by side; half of the smallest L2 cache of interest (40 MB on the
# A100, 50 MB on Hopper).
_L2_SHARE = 20 * 2**20


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def merged(sizes: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """(size, stride) of as few dimensions as walk over the same memory in the same order; sizes of 1 are left out."""
    result: list[tuple[int, int]] = []
    for size, stride in zip(sizes, strides, strict=True):
        if size == 1:
            continue
        if result and result[-1][1] == size * stride:
            result[-1] = (result[-1][0] * size, stride)
        else:
            result.append((size, stride))
    return result


# --- order of tiles --------------------------------------------------------------------------------------------------
def heads_per_section(bytes_per_head: int, heads: int) -> int:
    """Heads that run side by side: as many as leave what they all read again and again in the L2 cache."""
    return max(1, min(heads, _L2_SHARE // max(1, bytes_per_head)))


def tile_of(program: int, heads: int, blocks: int, section: int, backwards: bool) -> tuple[int, int]:
    """(head, block) of a program. Sections of heads follow one another; in a section blocks go from the dearest to the
    cheapest under a causal mask (backwards for blocks of queries), heads fastest, so that no long tile starts last.
    """
    first_head = program // (section * blocks) * section
    width = min(section, heads - first_head)
    rest = program - first_head * blocks
    block = rest // width
    return first_head + rest % width, blocks - 1 - block if backwards else block


@triton.jit
def tile_of_in_kernel(program, heads, blocks, section, BACKWARDS: tl.constexpr):
    first_head = program // (section * blocks) * section
    width = tl.minimum(section, heads - first_head)
    rest = program - first_head * blocks
    block = rest // width
    if BACKWARDS:
        block = blocks - 1 - block
    return first_head + rest % width, block


# --- block ranges ----------------------------------------------------------------------------------------------------
def key_range(first_query: int, rows: int, keys: int, block: int, causal: bool) -> tuple[int, int]:
    """(full, end) of a tile of queries: keys [0, full) are whole blocks that every query of the tile attends to, keys
    [full, end) need a mask (diagonal and tail), those from end on nobody attends to.
    """
    full, end = keys // block * block, keys
    if causal:
        # Query i attends to keys 0 ... i; the first query of the tile attends to the fewest.
        full = min(full, (first_query + 1) // block * block)
        end = min(end, first_query + rows)
    return full, end


@triton.jit
def key_range_in_kernel(first_query, rows, keys, block, causal):
    full = keys // block * block
    end = keys
    if causal != 0:
        full = tl.minimum(full, (first_query + 1) // block * block)
        end = tl.minimum(end, first_query + rows)
    return full, end


def query_range(first_key: int, columns: int, queries: int, block: int, causal: bool) -> tuple[int, int]:
    """(begin, full) of a tile of keys: blocks of queries in [begin, full) cross the diagonal, those in [full, queries)
    attend to the whole tile; those before begin attend to none of it. Both are multiples of the block or ``queries``
    and beyond.
    """
    if not causal:
        return 0, 0
    begin = first_key // block * block
    return begin, ceil_div(first_key + columns - 1, block) * block


@triton.jit
def query_range_in_kernel(first_key, columns, block, causal):
    begin = first_key * 0
    full = begin
    if causal != 0:
        begin = first_key // block * block
        full = (first_key + columns - 1 + block - 1) // block * block
    return begin, full


# --- few queries over many keys --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Split:
    """Keys in ``count`` chunks of ``chunk`` keys, the last one shorter; chunk is a multiple of the block."""

    count: int
    chunk: int


def split_keys(keys: int, block: int, tiles: int, processors: int, min_blocks: int = 2) -> Split:
    """Chunks so that tiles * count programs fill the processors about twice, none with fewer than min_blocks blocks."""
    blocks = max(1, ceil_div(keys, block))
    wanted = max(1, min(ceil_div(2 * processors, max(1, tiles)), blocks // min_blocks))
    per_chunk = ceil_div(blocks, wanted)
    return Split(ceil_div(blocks, per_chunk), per_chunk * block)


# More rows than these are never packed.
MOST_PACKED_ROWS = 64


def uses_split(
    rows: int, keys: int, tiles: int, block: int, processors: int, rows_limit: int = MOST_PACKED_ROWS
) -> bool:
    """Do the keys of a head go to several programs, with the ``rows`` queries of its group packed into one tile?

    Pays where rows would leave most of an ordinary tile of queries empty, or programs are fewer than processors.
    """
    return rows <= 16 or (rows <= rows_limit and tiles < processors and keys >= 4 * block)


# --- the mask's gradient ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MaskHeads:
    """Which heads share a slice of a mask. Heads 0 ... H are cut as [kept 0, shared 0, kept 1, shared 1]."""

    kept0: int
    shared0: int
    kept1: int
    shared1: int

    @property
    def slices(self) -> int:
        return self.kept0 * self.kept1

    @property
    def shared(self) -> int:
        return self.shared0 * self.shared1

    def head(self, of_slice: int, index: int) -> int:
        """The index-th head that reads slice of_slice."""
        outer = of_slice // self.kept1 * self.shared0 + index // self.shared1
        return (outer * self.kept1 + of_slice % self.kept1) * self.shared1 + index % self.shared1


def mask_heads(sizes: Sequence[int], kept: Sequence[bool]) -> MaskHeads | None:
    """The cut for leading dimensions of these sizes, each kept by the mask or broadcast; None: they alternate more."""
    groups = [1, 1, 1, 1]
    at = 0
    for size, keeps in zip(sizes, kept, strict=True):
        if size == 1:
            continue
        while at < 4 and (at % 2 == 0) != keeps:
            at += 1
        if at == 4:
            return None
        groups[at] *= size
    return MaskHeads(*groups)


def cut_in_parts(items: int, programs: int, processors: int) -> tuple[int, int]:
    """(parts, items per part): so many that programs * parts fill the processors about twice."""
    wanted = max(1, min(items, ceil_div(2 * processors, max(1, programs))))
    per_part = ceil_div(items, wanted)
    return ceil_div(items, per_part), per_part


@triton.jit
def mask_head_in_kernel(of_slice, index, shared0, kept1, shared1):
    outer = of_slice // kept1 * shared0 + index // shared1
    return (outer * kept1 + of_slice % kept1) * shared1 + index % shared1

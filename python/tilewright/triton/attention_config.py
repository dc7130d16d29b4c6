"""Tiles, warps and stages of every attention kernel: a pure function of architecture, dtype and head size.

A table row is (BLOCK_M queries, BLOCK_N keys, warps, stages). What bounds them is in docs/attention.md; that all of
them compile without spills and fit into shared memory is tested.
"""

from dataclasses import dataclass
from functools import cache

import torch

MAX_HEAD_SIZE = 256
HEAD_BLOCKS = (32, 64, 128, 256)


@dataclass(frozen=True)
class Config:
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def serves(head_size: int, value_size: int) -> str | None:
    """None, or why these kernels do not serve a call with such heads."""
    if max(head_size, value_size) > MAX_HEAD_SIZE:
        return f"head sizes above {MAX_HEAD_SIZE} are not served, got {head_size} and {value_size}"
    return None


@cache
def head_block(width: int) -> int:
    """The padded head size that a kernel is compiled for."""
    return next(block for block in HEAD_BLOCKS if width <= block)


def has_descriptors(architecture: int, dtype: torch.dtype) -> bool:
    """Do the plain kernels read through TMA descriptors, where strides allow it?"""
    return architecture >= 90 and dtype.itemsize == 2


# --- tables ----------------------------------------------------------------------------------------------------------
_Row = tuple[int, int, int, int]
_Table = dict[int, _Row]  # by padded head size

# 100 has tables of its own: its products leave their sums in tensor memory, and what passes through registers differs.
_GENERATIONS = {80: "ampere", 86: "ampere", 90: "hopper", 100: "blackwell"}

_FORWARD: dict[tuple[str, str], _Table] = {
    ("plain", "ampere"): {32: (128, 64, 4, 3), 64: (128, 64, 4, 3), 128: (128, 64, 8, 2), 256: (64, 32, 4, 2)},
    ("plain", "hopper"): {32: (128, 128, 8, 3), 64: (128, 128, 8, 3), 128: (128, 128, 8, 2), 256: (128, 64, 8, 2)},
    ("plain", "blackwell"): {32: (128, 128, 8, 3), 64: (128, 128, 8, 3), 128: (128, 128, 8, 2), 256: (128, 64, 8, 2)},
    ("general", "ampere"): {32: (64, 32, 4, 2), 64: (64, 32, 4, 2), 128: (64, 32, 8, 2), 256: (64, 32, 8, 2)},
    ("general", "hopper"): {32: (64, 64, 8, 2), 64: (64, 64, 8, 2), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2)},
    ("general", "blackwell"): {32: (64, 32, 8, 2), 64: (64, 64, 8, 2), 128: (64, 32, 8, 2), 256: (64, 32, 8, 2)},
    ("float", "any"): {32: (32, 32, 4, 2), 64: (32, 32, 8, 2), 128: (32, 32, 8, 1), 256: (16, 16, 8, 1)},
}
_KEYS: dict[tuple[str, str], _Table] = {
    ("plain", "ampere"): {32: (64, 64, 4, 2), 64: (32, 64, 4, 1), 128: (32, 64, 8, 2), 256: (32, 32, 8, 1)},
    ("plain", "hopper"): {32: (64, 128, 8, 2), 64: (64, 128, 8, 2), 128: (64, 128, 8, 2), 256: (32, 64, 8, 2)},
    ("plain", "blackwell"): {32: (64, 128, 8, 2), 64: (64, 128, 8, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 2)},
    ("general", "ampere"): {32: (32, 64, 4, 2), 64: (32, 32, 4, 2), 128: (32, 32, 8, 2), 256: (32, 32, 8, 1)},
    ("general", "hopper"): {32: (32, 64, 8, 2), 64: (32, 64, 8, 2), 128: (32, 64, 8, 2), 256: (32, 32, 8, 1)},
    ("general", "blackwell"): {32: (32, 64, 8, 2), 64: (32, 64, 8, 2), 128: (32, 64, 8, 1), 256: (32, 32, 8, 1)},
    ("float", "any"): {32: (16, 32, 4, 1), 64: (32, 32, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 4, 1)},
}
_QUERIES: dict[tuple[str, str], _Table] = {
    ("plain", "ampere"): {32: (64, 64, 4, 2), 64: (64, 64, 4, 2), 128: (64, 32, 4, 2), 256: (32, 32, 8, 1)},
    ("plain", "hopper"): {32: (128, 64, 8, 2), 64: (128, 64, 8, 2), 128: (128, 64, 8, 2), 256: (64, 64, 8, 1)},
    ("plain", "blackwell"): {32: (128, 64, 8, 2), 64: (128, 64, 8, 2), 128: (128, 64, 8, 2), 256: (64, 64, 8, 1)},
    ("general", "ampere"): {32: (64, 32, 4, 2), 64: (64, 32, 4, 2), 128: (64, 32, 8, 2), 256: (32, 32, 8, 1)},
    ("general", "hopper"): {32: (64, 64, 8, 2), 64: (64, 64, 8, 2), 128: (64, 64, 8, 2), 256: (64, 32, 8, 1)},
    ("general", "blackwell"): {32: (64, 64, 8, 2), 64: (64, 64, 8, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 1)},
    ("float", "any"): {32: (32, 32, 8, 2), 64: (32, 32, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1)},
}
_MASK: dict[tuple[str, str], _Table] = {
    ("general", "ampere"): {32: (64, 32, 4, 2), 64: (64, 32, 4, 2), 128: (32, 32, 4, 2), 256: (32, 16, 8, 1)},
    ("general", "hopper"): {32: (64, 64, 8, 2), 64: (64, 64, 8, 2), 128: (64, 64, 8, 1), 256: (64, 32, 8, 1)},
    ("general", "blackwell"): {32: (64, 64, 8, 2), 64: (64, 64, 8, 2), 128: (64, 64, 8, 1), 256: (32, 16, 8, 1)},
    ("float", "any"): {32: (32, 32, 4, 1), 64: (32, 32, 8, 1), 128: (16, 32, 8, 1), 256: (16, 16, 8, 1)},
}
_DECODE: dict[tuple[str, str], _Table] = {
    ("general", "ampere"): {32: (16, 64, 4, 3), 64: (16, 64, 4, 3), 128: (16, 64, 4, 2), 256: (16, 32, 4, 2)},
    ("general", "hopper"): {32: (16, 64, 4, 3), 64: (16, 64, 4, 3), 128: (16, 64, 4, 3), 256: (16, 64, 8, 2)},
    ("general", "blackwell"): {32: (16, 64, 4, 3), 64: (16, 64, 4, 3), 128: (16, 64, 4, 3), 256: (16, 64, 8, 2)},
    ("float", "any"): {32: (16, 32, 4, 2), 64: (16, 16, 4, 2), 128: (16, 32, 4, 2), 256: (16, 16, 8, 1)},
}
_TABLES = {"forward": _FORWARD, "keys": _KEYS, "queries": _QUERIES, "mask": _MASK, "decode": _DECODE}


@cache
def config(kernel: str, architecture: int, dtype: torch.dtype, block_d: int, plain: bool) -> Config:
    """The configuration of a kernel: forward, decode, keys, queries (of the backward) or mask (its gradient)."""
    if dtype == torch.float32:
        row = _TABLES[kernel]["float", "any"][block_d]
    else:
        row = _TABLES[kernel]["plain" if plain else "general", _GENERATIONS[architecture]][block_d]
    return Config(*row)


def row_config(block_d: int) -> Config:
    """Rows at a time of the kernels that only stream rows (delta, merge)."""
    return Config(2048 // block_d, 0, 4, 1)


def row_block(width: int) -> int:
    """Padded head size of those kernels."""
    return 64 if width <= 64 else 256

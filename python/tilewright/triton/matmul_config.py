"""Which tile computes a product: pure functions of shape, dtype and architecture.

A table holds a handful of tiles per architecture and kind of arithmetic; :func:`choose` takes the one whose estimated
time is least. The estimate knows five things: the matrix units' rate, the bytes that each step of K moves from L2 (the
limit of small tiles), memory's latency, how many programs run at a time (a half empty last wave costs a
whole one), and the cost of starting a tile. Its figures are data-sheet values; no GPU has been measured yet.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from .matmul_kernel import CONTIGUOUS, DESCRIPTOR, SPLIT_COLUMNS, SPLIT_ROWS, STRIDED, VECTOR

HALF, TF32, IEEE = "half", "tf32", "ieee"


@dataclass(frozen=True)
class Tile:
    """A compiled shape of the kernel and the accesses it is compiled for.

    Attributes:
        slices: in how many parts the epilogue works through the columns.
        resident: programs that share a multiprocessor.
        rate: what the tile reaches of the arithmetic units' rate at best; small ones feed them badly.
        any_layout: False where the epilogue only stores 16 bytes at a time and never splits K.
        max_m: the tile is for products of at most so many rows (None: any).
        a_along_k: the layouts of A it is compiled for.
    """

    M: int
    N: int
    K: int
    warps: int
    stages: int
    access: int
    kind: str
    slices: int = 1
    resident: int = 1
    rate: float = 1.0
    any_layout: bool = True
    max_m: int | None = None
    a_along_k: tuple[bool, ...] = (True, False)

    @property
    def layouts(self) -> list[tuple[bool, bool]]:
        """(A along K, B along K) pairs with a variant of their own."""
        if self.access == STRIDED:
            return [(True, False)]
        return [(a, b) for a in self.a_along_k for b in (True, False)]

    def shared_memory(self, itemsize: int) -> int:
        """Bytes that the stages of A and B take at most."""
        return (self.M + self.N) * self.K * itemsize * self.stages


def _half(large: Tile, medium: Tile, *more: Tile, deep: int) -> tuple[Tile, ...]:
    return (
        *more,
        large,
        medium,
        Tile(32, 32, 32, 2, 3, VECTOR, HALF, resident=8, rate=0.5),
        Tile(16, 64, deep, 4, 4, VECTOR, HALF, resident=2, rate=0.5, max_m=16),
        Tile(64, 64, 32, 4, 2, CONTIGUOUS, HALF, slices=2, resident=2),
        Tile(16, 64, 64, 4, 2, CONTIGUOUS, HALF, resident=2, rate=0.5, max_m=16, a_along_k=(True,)),
        Tile(32, 32, 32, 4, 2, STRIDED, HALF, resident=4, rate=0.5),
    )


# Without tensor cores, exact float32 products: the same on every architecture.
_IEEE = (
    Tile(64, 64, 16, 4, 3, VECTOR, IEEE, slices=2, resident=2),
    Tile(32, 32, 32, 2, 3, VECTOR, IEEE, resident=4, rate=0.5),
    Tile(16, 64, 16, 4, 4, VECTOR, IEEE, resident=2, rate=0.5, max_m=16),
    Tile(64, 64, 16, 8, 2, CONTIGUOUS, IEEE, slices=2, resident=2),
    Tile(16, 64, 32, 8, 2, CONTIGUOUS, IEEE, resident=2, rate=0.5, max_m=16, a_along_k=(True,)),
    Tile(32, 32, 16, 4, 2, STRIDED, IEEE, resident=4, rate=0.5),
)


def _tf32(large: Tile) -> tuple[Tile, ...]:
    return (large, Tile(64, 64, 32, 8, 2, CONTIGUOUS, TF32, slices=2))


# Tiles of 128 x 256 keep the tensor cores of Hopper and Blackwell fed from shared memory (anchors/gpu.md 2.2).
_HOPPER = (
    *_half(
        Tile(128, 128, 64, 8, 4, DESCRIPTOR, HALF, slices=2),
        Tile(64, 64, 64, 4, 4, DESCRIPTOR, HALF, resident=2),
        Tile(128, 256, 64, 8, 4, DESCRIPTOR, HALF, slices=4, any_layout=False),
        deep=128,
    ),
    *_tf32(Tile(128, 128, 32, 8, 4, DESCRIPTOR, TF32, slices=2)),
    *_IEEE,
)

TILES: dict[int, tuple[Tile, ...]] = {
    80: (
        *_half(
            Tile(128, 128, 64, 8, 3, VECTOR, HALF, slices=4),
            Tile(64, 64, 64, 4, 3, VECTOR, HALF, resident=2),
            deep=128,
        ),
        *_tf32(Tile(128, 128, 32, 8, 3, VECTOR, TF32, slices=4)),
        *_IEEE,
    ),
    86: (
        *_half(
            Tile(128, 128, 32, 8, 4, VECTOR, HALF, slices=4),
            Tile(64, 64, 32, 4, 4, VECTOR, HALF, resident=2),
            deep=64,
        ),
        *_tf32(Tile(128, 128, 16, 8, 4, VECTOR, TF32, slices=4)),
        *_IEEE,
    ),
    90: _HOPPER,
    100: _HOPPER,
}


@dataclass(frozen=True)
class Machine:
    """A card to the estimate: multiprocessors; per cycle and multiprocessor FLOP by kind, bytes from L2 and memory."""

    multiprocessors: int
    flops: dict[str, int]
    bytes: int = 48
    memory_bytes: int = 16


MACHINES = {
    80: Machine(108, {HALF: 2048, TF32: 1024, IEEE: 128}),
    86: Machine(84, {HALF: 1024, TF32: 256, IEEE: 256}),
    90: Machine(132, {HALF: 4096, TF32: 2048, IEEE: 256}),
    100: Machine(148, {HALF: 8192, TF32: 4096, IEEE: 256}, bytes=64),
}

_MEMORY_CYCLES = 800  # from asking for a tile to having it; hidden by the stages in flight
_TILE_CYCLES = 1500  # filling the pipeline and storing the result
_LAUNCH_CYCLES = 4000  # a second launch
_DESCRIPTOR_CYCLES = 1500  # two tensor maps, made by the CPU for every launch
# Where every element is an access of its own: elements per cycle, for neighbouring ones and for scattered ones.
_ELEMENTS_PER_CYCLE = {CONTIGUOUS: 16, STRIDED: 4}
_MIN_STEPS = 4  # steps of K in a split, at least


@dataclass(frozen=True)
class Plan:
    tile: Tile
    splits: int
    cycles: float


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def split_range(split: int, splits: int, steps: int) -> range:
    """The steps of K that a split sums; as in the kernel."""
    per_split = cdiv(steps, splits)
    return range(min(split * per_split, steps), min((split + 1) * per_split, steps))


def tile_position(tile: int, tiles_m: int, tiles_n: int, group: int) -> tuple[int, int]:
    """(row, column) of a tile; as in the kernel."""
    first = tile // (group * tiles_n) * group
    rows = min(tiles_m - first, group)
    inside = tile - first * tiles_n
    return first + inside % rows, inside // rows


def _plans(tile: Tile, M: int, N: int, K: int, batch: int, reduced: int, itemsize: int, machine: Machine) -> list[Plan]:
    """The tile without splits and, where it leaves programs idle, with as many as fill the card."""
    tiles, steps = batch * cdiv(M, tile.M) * cdiv(N, tile.N), reduced * cdiv(K, tile.K)
    slots = machine.multiprocessors * tile.resident
    elements = (min(tile.M, M) + min(tile.N, N)) * tile.K
    moved = elements / _ELEMENTS_PER_CYCLE[tile.access] if tile.access in _ELEMENTS_PER_CYCLE else 0
    step_cycles = max(
        2 * tile.M * tile.N * tile.K / (tile.rate * machine.flops[tile.kind]),
        elements * itemsize / machine.bytes,
        moved,
    )
    counts = {1}
    if tile.any_layout and tiles * 2 <= slots and steps >= 2 * _MIN_STEPS:
        wanted = min(slots // tiles, steps // _MIN_STEPS)
        counts.add(cdiv(steps, cdiv(steps, wanted)))  # no split without a step
    plans = []
    for splits in counts:
        programs = tiles * splits
        # Programs on one multiprocessor share its units: a wave takes as long as the fullest multiprocessor's share.
        waves, last = divmod(programs, slots)
        latency = _MEMORY_CYCLES / (tile.stages - 1)
        wave_cycles = waves * max(tile.resident * step_cycles, latency)
        if last > 0:
            wave_cycles += max(cdiv(last, machine.multiprocessors) * step_cycles, latency)
        cycles = cdiv(steps, splits) * wave_cycles + (waves + (last > 0)) * _TILE_CYCLES
        if tile.access == DESCRIPTOR:
            cycles += _DESCRIPTOR_CYCLES
        if splits > 1:
            traffic = 8 * splits * batch * M * N / (machine.bytes * machine.multiprocessors)
            cycles += _LAUNCH_CYCLES + traffic
        plans.append(Plan(tile, splits, cycles))
    return plans


@lru_cache(maxsize=8192)
def choose(
    M: int,
    N: int,
    K: int,
    batch: int,
    reduced: int,
    dtype: torch.dtype,
    architecture: int,
    *,
    accesses: frozenset[int] = frozenset((STRIDED, CONTIGUOUS, VECTOR, DESCRIPTOR)),
    a_along_k: bool = True,
    vector_output: bool = True,
    allow_tf32: bool = False,
) -> Plan:
    """The tile and the number of splits for a product.

    Args:
        reduced: size of the reduced batch dimension; its steps follow one another like those of K.
        accesses: how the operands can be read; always with STRIDED.
        a_along_k: is A contiguous along K?
        vector_output: is every access of the epilogue one of 16 bytes?
        allow_tf32: may float32 operands be rounded to TF32?
    """
    kinds = (IEEE, TF32) if allow_tf32 else (IEEE,)
    kinds = kinds if dtype == torch.float32 else (HALF,)
    candidates = [
        plan
        for tile in TILES[architecture]
        if tile.kind in kinds
        and tile.access in accesses
        and (tile.any_layout or vector_output)
        and (tile.max_m is None or tile.max_m >= M)
        and (tile.access == STRIDED or a_along_k in tile.a_along_k)
        for plan in _plans(tile, M, N, K, batch, reduced, dtype.itemsize, MACHINES[architecture])
    ]
    return min(candidates, key=lambda plan: plan.cycles)


def copy_cycles(elements: int, itemsize: int, architecture: int) -> float:
    """Of a copy that reads and writes memory, in a launch of its own."""
    machine = MACHINES[architecture]
    return _LAUNCH_CYCLES + 2 * elements * itemsize / (machine.memory_bytes * machine.multiprocessors)


SPLIT_CONSTANTS = (("ROWS", SPLIT_ROWS), ("COLUMNS", SPLIT_COLUMNS))

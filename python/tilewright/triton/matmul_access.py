"""How an operand of a product can be read: 16 bytes at a time, through a tensor descriptor, or not so."""

from dataclasses import dataclass
from math import gcd, prod
from typing import NamedTuple

_INT32 = 2**31


@dataclass
class Side:
    """How one operand can be read: [outer, inner] of its matrix, outer the dimension along the output."""

    base_is_aligned: bool
    itemsize: int
    outer: int
    depth: int
    outer_stride: int
    depth_stride: int
    batch: tuple[int, ...]  # strides of the kept dimensions and the reduced one
    sizes: tuple[int, ...]

    @property
    def along_k(self) -> bool:
        """Which dimension counts as contiguous; K where both could."""
        return self.depth_stride == 1 or (self.depth == 1 and self.outer_stride != 1)

    @property
    def lines(self) -> tuple[int, int, int, int]:
        """(size, stride) of the dimension that is not contiguous, then of the one that is."""
        outer, depth = (self.outer, self.outer_stride), (self.depth, self.depth_stride)
        return (*outer, *depth) if self.along_k else (*depth, *outer)

    @property
    def elements(self) -> int:
        return self.outer * self.depth * prod(n for n, stride in zip(self.sizes, self.batch, strict=True) if stride)

    @property
    def is_contiguous(self) -> bool:
        _, _, size, stride = self.lines
        return stride == 1 or size == 1

    def is_aligned(self, unit: int) -> bool:
        """Base and every stride but the contiguous one are multiples of 16 bytes."""
        if not self.is_contiguous or not self.base_is_aligned:
            return False
        return self.lines[1] % unit == 0 and not any(stride % unit for stride in self.batch)

    def is_vector(self, unit: int) -> bool:
        return self.is_aligned(unit) and self.lines[2] % unit == 0

    def step(self, unit: int) -> tuple[int, int]:
        """The batch as one descriptor dimension: its stride, of which all batch strides are multiples, and its size."""
        step = 0
        for stride in self.batch:
            step = gcd(step, stride)
        if step == 0:
            return unit, 1
        return step, 1 + sum((size - 1) * stride for size, stride in zip(self.sizes, self.batch, strict=True)) // step

    def has_descriptor(self, unit: int) -> bool:
        if not self.is_aligned(unit):
            return False
        rows, row_stride, cols, _ = self.lines
        step, items = self.step(unit)
        if min(rows, cols) == 0 or (rows > 1 and row_stride == 0):  # what TMA has no map for
            return False
        return max(rows, cols, items) < _INT32 - 1024 and max(step, row_stride) * self.itemsize < 2**40

    def descriptor(self, unit: int, block_outer: int, block_depth: int) -> "Box":
        rows, row_stride, cols, _ = self.lines
        step, items = self.step(unit)
        block = (1, block_outer, block_depth) if self.along_k else (1, block_depth, block_outer)
        row_stride = row_stride or -(-cols // unit) * unit
        steps = tuple(stride // step for stride in self.batch)
        return Box((items, rows, cols), (step, row_stride, 1), block, steps)


class Box(NamedTuple):
    """A tensor descriptor [batch, rows, cols], and the batch strides as steps along its first dimension."""

    shape: tuple[int, int, int]
    strides: tuple[int, int, int]
    block: tuple[int, int, int]
    steps: tuple[int, ...]

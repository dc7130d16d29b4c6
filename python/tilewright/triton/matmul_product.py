"""Launches the product kernel: operands are made as few dimensions as they can be, then a tile is chosen.

On the way batch dimensions that no operand needs apart become one, batch dimensions over which B does not change
become rows of A, reduced dimensions become part of K, and a product of few columns is turned on its side, so that few
columns and few rows are the same case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import matmul_kernel as kernel
from .matmul_config import SPLIT_CONSTANTS, TF32, TILES, Tile, cdiv, choose
from .matmul_kernel import CONTIGUOUS, DESCRIPTOR, STRIDED, VECTOR
from .variants import Variant, architecture_of, launch, type_name

KERNEL_BATCH_DIMS = 3
_FEW = 16  # so many columns or fewer are turned into rows
_INT32 = 2**31


@dataclass
class Operand:
    """A matrix, or a batch of them: a tensor whose first element is the matrix's, and strides in elements.

    batch has a stride for every batch dimension of the product, 0 where the operand is broadcast or the result reduced.
    """

    tensor: Tensor
    row: int
    col: int
    batch: list[int]

    def turned(self) -> "Operand":
        return Operand(self.tensor, self.col, self.row, self.batch)


def matrix(tensor: Tensor, batch_dims: int, *, is_left: bool = True) -> Operand:
    """The matrices in a tensor's last two dimensions, its batch dimensions aligned to the last of `batch_dims`.

    A vector is a row on the left and a column on the right.
    """
    strides, sizes, rank = tensor.stride(), tensor.shape, tensor.dim()
    if rank == 1:
        row, col = (0, strides[0]) if is_left else (strides[0], 0)
        return Operand(tensor, row, col, [0] * batch_dims)
    batch = [0] * (batch_dims - rank + 2) + [0 if sizes[d] == 1 else strides[d] for d in range(rank - 2)]
    return Operand(tensor, strides[-2], strides[-1], batch)


@dataclass
class Product:
    """C = act(alpha A B + beta addend), batch dimension d summed where is_reduced[d].

    `pre`, laid out like C, gets what the activation (a code of activation.CODES) is applied to.
    """

    M: int
    N: int
    K: int
    sizes: list[int]
    is_reduced: list[bool]
    a: Operand
    b: Operand
    c: Operand
    addend: Operand | None = None
    pre: Tensor | None = None
    alpha: float = 1.0
    beta: float = 1.0
    activation: int = 0


_Dim = tuple[int, tuple[int, ...]]  # size, stride in each operand


def _joined(dims: list[_Dim]) -> list[_Dim]:
    """Dimensions, outermost first, with neighbours made one where all operands allow it."""
    out: list[_Dim] = []
    for size, strides in dims:
        if size == 1:
            continue
        if out and all(outer == inner * size for outer, inner in zip(out[-1][1], strides, strict=True)):
            out[-1] = (out[-1][0] * size, strides)
        else:
            out.append((size, strides))
    return out


def _fold(dims: list[_Dim], size: int, steps: tuple[int, ...], still: int | None) -> tuple[int, tuple[int, ...]]:
    """Move dimensions out of `dims` into a matrix dimension of `size` whose strides are `steps`.

    still: an operand that must not change along them (it has no such matrix dimension).
    """
    changed = True
    while changed:
        changed = False
        for dim in reversed(dims):
            count, strides = dim
            moves = [d for d in range(len(steps)) if d != still]
            if still is not None and strides[still] != 0:
                continue
            if size == 1 or all(strides[d] == size * steps[d] for d in moves):
                steps = steps if size > 1 else tuple(0 if d == still else strides[d] for d in range(len(steps)))
                size *= count
                dims.remove(dim)
                changed = True
                break
    return size, steps


def _dense(product: Product) -> None:
    """Copy operands whose batch dimensions are too many: reduced ones last and all in one piece."""
    order = sorted(range(len(product.sizes)), key=lambda d: product.is_reduced[d])
    sizes = [product.sizes[d] for d in order]

    def copied(operand: Operand, rows: int, cols: int) -> Operand:
        strides = [operand.batch[d] for d in order] + [operand.row, operand.col]
        tensor = operand.tensor.as_strided([*sizes, rows, cols], strides).contiguous()
        return matrix(tensor, len(sizes))

    product.a = copied(product.a, product.M, product.K)
    product.b = copied(product.b, product.K, product.N)
    if product.addend is not None:
        product.addend = copied(product.addend, product.M, product.N)
    product.c.batch = [product.c.batch[d] for d in order]
    product.sizes, product.is_reduced = sizes, [product.is_reduced[d] for d in order]


@dataclass
class _Flat:
    """A product with at most KERNEL_BATCH_DIMS batch dimensions and one reduced one; strides of size 1 are 0."""

    M: int
    N: int
    K: int
    kept: list[_Dim]  # strides of a, b, c, addend
    reduced: _Dim  # strides of a, b
    a: tuple[int, int]  # row, col
    b: tuple[int, int]
    c: tuple[int, int]
    addend: tuple[int, int]

    @property
    def batch(self) -> int:
        count = 1
        for size, _ in self.kept:
            count *= size
        return count

    def swap(self) -> None:
        """C^T = B^T A^T."""
        self.M, self.N = self.N, self.M
        self.a, self.b = self.b[::-1], self.a[::-1]
        self.c, self.addend = self.c[::-1], self.addend[::-1]
        self.kept = [(size, (b, a, c, d)) for size, (a, b, c, d) in self.kept]
        self.reduced = (self.reduced[0], self.reduced[1][::-1])


def flatten(product: Product) -> _Flat | None:
    """The product in the kernel's dimensions; None where there are too many of them."""
    addend_batch = product.addend.batch if product.addend is not None else [0] * len(product.sizes)
    kept_dims: list[_Dim] = []
    reduced_dims: list[_Dim] = []
    for d, size in enumerate(product.sizes):
        pair = (product.a.batch[d], product.b.batch[d])
        if product.is_reduced[d]:
            reduced_dims.append((size, pair))
        else:
            kept_dims.append((size, (*pair, product.c.batch[d], addend_batch[d])))
    kept, reduced = _joined(kept_dims), _joined(reduced_dims)
    addend = product.addend if product.addend is not None else Operand(product.c.tensor, 0, 0, [])
    M, rows = _fold(kept, product.M, (product.a.row, 0, product.c.row, addend.row), 1)
    K, depth = _fold(reduced, product.K, (product.a.col, product.b.row), None)
    kept = _joined(kept)
    if len(kept) > KERNEL_BATCH_DIMS or len(reduced) > 1:
        return None
    one = {1: 0}
    a = (one.get(M, rows[0]), one.get(K, depth[0]))
    b = (one.get(K, depth[1]), one.get(product.N, product.b.col))
    c = (one.get(M, rows[2]), one.get(product.N, product.c.col))
    other = (one.get(M, rows[3]), one.get(product.N, addend.col))
    return _Flat(M, product.N, K, kept, reduced[0] if reduced else (1, (0, 0)), a, b, c, other)


@dataclass
class _Side:
    """How one operand can be read: [outer, inner] of its matrix, outer the dimension along the output."""

    tensor: Tensor
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
    def is_contiguous(self) -> bool:
        _, _, size, stride = self.lines
        return stride == 1 or size == 1

    def is_aligned(self, unit: int) -> bool:
        """Base and every stride but the contiguous one are multiples of 16 bytes."""
        if not self.is_contiguous or self.tensor.data_ptr() % 16 != 0:
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
        if rows > 1 and row_stride == 0:  # TMA strides are positive
            return False
        return max(rows, cols, items) < _INT32 - 1024 and max(step, row_stride) * self.tensor.itemsize < 2**40

    def descriptor(self, unit: int, block_outer: int, block_depth: int) -> tuple[TensorDescriptor, tuple[int, ...]]:
        """A tensor descriptor [batch, rows, cols] and the batch strides as steps along its first dimension."""
        rows, row_stride, cols, _ = self.lines
        step, items = self.step(unit)
        block = [1, block_outer, block_depth] if self.along_k else [1, block_depth, block_outer]
        row_stride = row_stride or cdiv(cols, unit) * unit
        found = TensorDescriptor(self.tensor, [items, rows, cols], [step, row_stride, 1], block)
        return found, tuple(stride // step for stride in self.batch)


@lru_cache(maxsize=1024)
def product_variant(tile: Tile, dtype: torch.dtype, a_along_k: bool, b_along_k: bool) -> Variant:
    name = type_name(dtype)
    types = dict.fromkeys(kernel.POINTERS, f"*{name}") | {"partial": "*fp32"}
    if tile.access == DESCRIPTOR:
        blocks = {
            "a": (tile.M, tile.K) if a_along_k else (tile.K, tile.M),
            "b": (tile.N, tile.K) if b_along_k else (tile.K, tile.N),
        }
        types |= {side: f"tensordesc<{name}[1, {rows}, {cols}]>" for side, (rows, cols) in blocks.items()}
    types |= {"alpha": "fp32", "beta": "fp32"} | dict.fromkeys(kernel.SIZES, "i64") | dict.fromkeys(kernel.FLAGS, "i32")
    constants = {
        "BLOCK_M": tile.M,
        "BLOCK_N": tile.N,
        "BLOCK_K": tile.K,
        "ACCESS": tile.access,
        "A_ALONG_K": a_along_k,
        "B_ALONG_K": b_along_k,
        "PRECISION": "tf32" if tile.kind == TF32 else "ieee",
        "GROUP": kernel.GROUP,
        "SLICES": tile.slices,
        "ANY_LAYOUT": tile.any_layout,
    }
    return Variant(kernel.product, tuple(types.items()), tuple(constants.items()), tile.warps, tile.stages)


@lru_cache(maxsize=16)
def split_variant(dtype: torch.dtype) -> Variant:
    types = dict.fromkeys(("c", "addend", "pre"), f"*{type_name(dtype)}") | {"partial": "*fp32"}
    types |= {"alpha": "fp32", "beta": "fp32"} | dict.fromkeys(kernel.SUM_SIZES, "i64")
    types |= dict.fromkeys(kernel.SUM_FLAGS, "i32")
    return Variant(kernel.sum_splits, tuple(types.items()), SPLIT_CONSTANTS, 4, 2)


def product_variants(architecture: int) -> list[Variant]:
    """Every variant that :func:`run` can launch on an architecture."""
    found = [split_variant(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    for tile in TILES[architecture]:
        dtypes = (torch.bfloat16, torch.float16) if tile.kind == "half" else (torch.float32,)
        found += [product_variant(tile, dtype, *layout) for dtype in dtypes for layout in tile.layouts]
    return found


def allows_tf32() -> bool:
    """Does torch allow float32 products in TF32 on CUDA?"""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


@lru_cache(maxsize=64)
def _programs_at_once(device: torch.device) -> int:
    """Multiprocessors; a few in the interpreter, so that programs work through several tiles each."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


@lru_cache(maxsize=64)
def _no_partial(device: torch.device) -> Tensor:
    """What stands for the partial sums in launches without any; never read."""
    return torch.empty(1, dtype=torch.float32, device=device)


def _padded(values: Sequence[int], fill: int) -> list[int]:
    return [fill] * (KERNEL_BATCH_DIMS - len(values)) + list(values)


def _strides(name: str, row: int, col: int, batch: Sequence[int]) -> dict[str, int]:
    names = ("row", "col", "batch0", "batch1", "batch2")
    return dict(zip((f"{name}_{part}" for part in names), (row, col, *batch), strict=True))


def run(product: Product) -> None:
    """Compute a product with at least one element in C."""
    flat = flatten(product)
    if flat is None:
        _dense(product)
        flat = flatten(product)
        assert flat is not None
    left, right = product.a.tensor, product.b.tensor
    if flat.N <= _FEW and flat.M > flat.N:
        flat.swap()
        left, right = right, left
    out = product.c.tensor
    dtype, device = out.dtype, out.device
    architecture = architecture_of(device)
    unit = 16 // dtype.itemsize
    sizes = (*(size for size, _ in flat.kept), flat.reduced[0])
    a_batch, b_batch, c_batch, addend_batch = (tuple(s[i] for _, s in flat.kept) for i in range(4))
    a = _Side(left, flat.M, flat.K, *flat.a, (*a_batch, flat.reduced[1][0]), sizes)
    b = _Side(right, flat.N, flat.K, *flat.b[::-1], (*b_batch, flat.reduced[1][1]), sizes)

    accesses = {STRIDED}
    if a.is_contiguous and b.is_contiguous:
        accesses.add(CONTIGUOUS)
        if a.is_vector(unit) and b.is_vector(unit):
            accesses.add(VECTOR)
        if architecture >= 90 and a.has_descriptor(unit) and b.has_descriptor(unit):
            accesses.add(DESCRIPTOR)

    def in_vectors(tensor: Tensor, row: int, col: int, batch: Sequence[int]) -> bool:
        fits = col == 1 and flat.N % unit == 0 and row % unit == 0 and tensor.data_ptr() % 16 == 0
        return fits and not any(stride % unit for stride in batch)

    vector_output = in_vectors(out, *flat.c, c_batch)
    addend_access = kernel.NO_ADDEND
    if product.addend is not None:
        addend_access = kernel.STRIDED_ADDEND
        if flat.addend[0] == 0 and not any(addend_batch):
            addend_access = kernel.ROW_ADDEND
        elif in_vectors(product.addend.tensor, *flat.addend, addend_batch):
            addend_access = kernel.VECTOR_ADDEND
    plan = choose(
        flat.M,
        flat.N,
        flat.K,
        flat.batch,
        flat.reduced[0],
        dtype,
        architecture,
        accesses=frozenset(accesses),
        a_along_k=a.along_k,
        vector_output=vector_output and addend_access != kernel.STRIDED_ADDEND,
        allow_tf32=dtype == torch.float32 and allows_tf32(),
    )
    tile = plan.tile
    layout = (True, False) if tile.access == STRIDED else (a.along_k, b.along_k)
    variant = product_variant(tile, dtype, *layout)
    batch_sizes = _padded([size for size, _ in flat.kept], 1)
    shared = {
        "c": out,
        "addend": product.addend.tensor if product.addend is not None else out,
        "pre": product.pre if product.pre is not None else out,
        "alpha": product.alpha,
        "beta": product.beta,
        "M": flat.M,
        "N": flat.N,
        "batch": flat.batch,
        "batch1": batch_sizes[1],
        "batch2": batch_sizes[2],
        "splits": plan.splits,
        "activation": product.activation,
        "saves_pre": int(product.pre is not None),
        **_strides("c", *flat.c, _padded(c_batch, 0)),
        **_strides("addend", *flat.addend, _padded(addend_batch, 0)),
    }
    a_base: Tensor | TensorDescriptor = left
    b_base: Tensor | TensorDescriptor = right
    a_steps, b_steps = a.batch, b.batch
    if tile.access == DESCRIPTOR:
        a_base, a_steps = a.descriptor(unit, tile.M, tile.K)
        b_base, b_steps = b.descriptor(unit, tile.N, tile.K)
    partial = _no_partial(device)
    if plan.splits > 1:
        partial = torch.empty(plan.splits * flat.batch * flat.M * flat.N, dtype=torch.float32, device=device)
    tiles = flat.batch * cdiv(flat.M, tile.M) * cdiv(flat.N, tile.N) * plan.splits
    arguments = shared | {
        "a": a_base,
        "b": b_base,
        "partial": partial,
        "K": flat.K,
        "reduced": flat.reduced[0],
        "addend_access": addend_access,
        "vector_output": int(vector_output),
        **_strides("a", *flat.a, _padded(a_steps[:-1], 0)),
        **_strides("b", *flat.b, _padded(b_steps[:-1], 0)),
        "a_reduced": a_steps[-1],
        "b_reduced": b_steps[-1],
    }
    launch(variant, (min(tiles, _programs_at_once(device) * tile.resident),), arguments)
    if plan.splits > 1:
        arguments = shared | {"partial": partial, "has_addend": int(addend_access != kernel.NO_ADDEND)}
        launch(split_variant(dtype), (cdiv(flat.batch * flat.M * flat.N, kernel.SPLIT_COLUMNS),), arguments)

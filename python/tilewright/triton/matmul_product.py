"""Launches the product kernel: how a layout is computed is worked out once, then only pointers change."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import matmul_kernel as kernel
from .matmul_access import Box, Side
from .matmul_config import SPLIT_CONSTANTS, TF32, TILES, Tile, cdiv, choose, copy_cycles
from .matmul_kernel import CONTIGUOUS, DESCRIPTOR, STRIDED, VECTOR
from .matmul_operands import FEW, KERNEL_BATCH_DIMS, Flat, Product, ProductLayout, flatten
from .matmul_splits import FLAGS, SIZES, sum_splits
from .variants import Variant, architecture_of, launch, type_name


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
    types |= {"alpha": "fp32", "beta": "fp32"} | dict.fromkeys(SIZES, "i64")
    types |= dict.fromkeys(FLAGS, "i32")
    return Variant(sum_splits, tuple(types.items()), SPLIT_CONSTANTS, 4, 2)


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
    return dict(zip((f"{name}_{part}" for part in names), (row, col, *_padded(batch, 0)), strict=True))


@dataclass(frozen=True)
class _Recipe:
    """How products of one layout are computed.

    Attributes:
        is_turned: A and B change places.
        numbers, split_numbers: the integer arguments of the kernels, `activation` and `saves_pre` excepted.
        boxes: the descriptors of A and B, if they are read so.
        partial: elements of the splits' results; 0 without splits.
        copies: of A, B: would it be faster with a copy whose rows are aligned?
    """

    variant: Variant
    tiles: int
    resident: int
    is_turned: bool
    numbers: dict[str, int]
    split_numbers: dict[str, int]
    boxes: tuple[Box, Box] | None
    partial: int
    copies: tuple[bool, bool]


def _addend_access(flat: Flat, layout: ProductLayout, unit: int) -> int:
    if layout.addend is None:
        return kernel.NO_ADDEND
    batch = [strides[3] for _, strides in flat.kept]
    if flat.addend[0] == 0 and not any(batch):
        return kernel.ROW_ADDEND
    in_vectors = layout.addend.is_aligned and _is_in_vectors(flat.N, *flat.addend, batch, unit)
    return kernel.VECTOR_ADDEND if in_vectors else kernel.STRIDED_ADDEND


def _is_in_vectors(cols: int, row: int, col: int, batch: Sequence[int], unit: int) -> bool:
    """Can rows be read and written 16 bytes at a time, where the first one begins so?"""
    return col == 1 and cols % unit == 0 and row % unit == 0 and not any(stride % unit for stride in batch)


def _accesses(a: Side, b: Side, unit: int, architecture: int) -> frozenset[int]:
    found = {STRIDED}
    if a.is_contiguous and b.is_contiguous:
        found.add(CONTIGUOUS)
        if a.is_vector(unit) and b.is_vector(unit):
            found.add(VECTOR)
        if architecture >= 90 and a.has_descriptor(unit) and b.has_descriptor(unit):
            found.add(DESCRIPTOR)
    return frozenset(found)


_COPIES_GAIN = 0.8  # of the time without copies is what a product with them may take: estimates are not exact


def _copies(
    a: Side, b: Side, unit: int, architecture: int, shape: Sequence[Any], options: dict[str, Any]
) -> list[bool]:
    """Which of A and B to copy: those TMA cannot read, where that pays (odd row lengths of large products)."""
    unread = [not side.has_descriptor(unit) for side in (a, b)]
    if architecture < 90 or not any(unread):
        return [False, False]
    there = choose(*shape, **options)
    aligned = choose(*shape, **options | {"accesses": options["accesses"] | {DESCRIPTOR}})
    copied = [side.elements for side, is_unread in zip((a, b), unread, strict=True) if is_unread]
    cycles = aligned.cycles + sum(copy_cycles(elements, a.itemsize, architecture) for elements in copied)
    pays = aligned.tile.access == DESCRIPTOR and cycles < _COPIES_GAIN * there.cycles
    return [pays and is_unread for is_unread in unread]


@lru_cache(maxsize=8192)
def _recipe(layout: ProductLayout, dtype: torch.dtype, architecture: int, allow_tf32: bool) -> _Recipe | None:
    """None where the layout has more batch dimensions than the kernel."""
    flat = flatten(layout)
    if flat is None:
        return None
    left, right = layout.a.is_aligned, layout.b.is_aligned
    is_turned = flat.N <= FEW and flat.M > flat.N
    if is_turned:
        flat.swap()
        left, right = right, left
    unit, reduced = 16 // dtype.itemsize, flat.reduced[0]
    sizes = [size for size, _ in flat.kept]
    a_batch, b_batch, c_batch, addend_batch = ([s[i] for _, s in flat.kept] for i in range(4))
    everything = (*sizes, reduced)
    a = Side(left, dtype.itemsize, flat.M, flat.K, *flat.a, (*a_batch, flat.reduced[1][0]), everything)
    b = Side(right, dtype.itemsize, flat.N, flat.K, *flat.b[::-1], (*b_batch, flat.reduced[1][1]), everything)
    vector_output = layout.c.is_aligned and _is_in_vectors(flat.N, *flat.c, c_batch, unit)
    addend_access = _addend_access(flat, layout, unit)
    shape = flat.M, flat.N, flat.K, flat.batch, reduced, dtype, architecture
    options = {
        "accesses": _accesses(a, b, unit, architecture),
        "a_along_k": a.along_k,
        "vector_output": vector_output and addend_access != kernel.STRIDED_ADDEND,
        "allow_tf32": allow_tf32,
    }
    plan = choose(*shape, **options)
    copies = _copies(a, b, unit, architecture, shape, options)
    tile, splits = plan.tile, plan.splits
    boxes = None
    a_steps, b_steps = a.batch, b.batch
    if tile.access == DESCRIPTOR:
        boxes = a.descriptor(unit, tile.M, tile.K), b.descriptor(unit, tile.N, tile.K)
        a_steps, b_steps = boxes[0].steps, boxes[1].steps
    inner = _padded(sizes, 1)
    shared = {"M": flat.M, "N": flat.N, "batch": flat.batch, "batch1": inner[1], "batch2": inner[2], "splits": splits}
    shared |= _strides("c", *flat.c, c_batch) | _strides("addend", *flat.addend, addend_batch)
    numbers = shared | _strides("a", *flat.a, a_steps[:-1]) | _strides("b", *flat.b, b_steps[:-1])
    numbers |= {"K": flat.K, "reduced": reduced, "a_reduced": a_steps[-1], "b_reduced": b_steps[-1]}
    numbers |= {"addend_access": addend_access, "vector_output": int(vector_output)}
    along = (True, False) if tile.access == STRIDED else (a.along_k, b.along_k)
    return _Recipe(
        variant=product_variant(tile, dtype, *along),
        tiles=flat.batch * cdiv(flat.M, tile.M) * cdiv(flat.N, tile.N) * splits,
        resident=tile.resident,
        is_turned=is_turned,
        numbers=numbers,
        split_numbers=shared | {"has_addend": int(addend_access != kernel.NO_ADDEND)},
        boxes=boxes,
        partial=splits * flat.batch * flat.M * flat.N if splits > 1 else 0,
        copies=(copies[1], copies[0]) if is_turned else (copies[0], copies[1]),
    )


def _described(tensor: Tensor, box: Box) -> TensorDescriptor:
    return TensorDescriptor(tensor, list(box.shape), list(box.strides), list(box.block))


def run(product: Product) -> None:
    """Compute a product with at least one element in C."""
    out = product.c.tensor
    dtype, device = out.dtype, out.device
    how = dtype, architecture_of(device), dtype == torch.float32 and allows_tf32()
    recipe = _recipe(product.layout, *how)
    if recipe is not None and any(recipe.copies):
        product.align(recipe.copies, 16 // dtype.itemsize)
        recipe = _recipe(product.layout, *how)
    if recipe is None:
        product.make_dense()
        recipe = _recipe(product.layout, *how)
        assert recipe is not None
    left, right = product.a.tensor, product.b.tensor
    if recipe.is_turned:
        left, right = right, left
    splits = recipe.partial > 0
    partial = torch.empty(recipe.partial, dtype=torch.float32, device=device) if splits else _no_partial(device)
    shared = {
        "c": out,
        "addend": product.addend.tensor if product.addend is not None else out,
        "pre": product.pre if product.pre is not None else out,
        "partial": partial,
        "alpha": product.alpha,
        "beta": product.beta,
        "activation": product.activation,
        "saves_pre": int(product.pre is not None),
    }
    operands = {"a": left, "b": right}
    if recipe.boxes is not None:
        operands = {"a": _described(left, recipe.boxes[0]), "b": _described(right, recipe.boxes[1])}
    programs = min(recipe.tiles, _programs_at_once(device) * recipe.resident)
    launch(recipe.variant, (programs,), operands | shared | recipe.numbers)
    if splits:
        elements = recipe.partial // recipe.numbers["splits"]
        launch(split_variant(dtype), (cdiv(elements, kernel.SPLIT_COLUMNS),), shared | recipe.split_numbers)

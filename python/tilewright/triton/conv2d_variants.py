"""Every compiled configuration of the conv2d kernels."""

from dataclasses import replace
from functools import cache
from inspect import Parameter, signature
from typing import Any

import torch
import triton.language as tl

from . import DTYPES
from . import conv2d_schedule as schedule
from .conv2d_product import product
from .conv2d_schedule import Tile
from .conv2d_weight_gradient import add_chunks, column_sums, weight_sums
from .variants import Variant, type_name

# (chunks, elements) of a step of the program that adds chunks: many chunks of few weights, or few of many.
SUM_BLOCKS = ((16, 128), (2, 512))
ROWS_BLOCK = (64, 64)  # pixels and filters of a step of the bias gradient


def product_bits(dtype: torch.dtype) -> int:
    """What the tables call a product's precision: 16, 32, or 19 where torch allows TF32."""
    if dtype != torch.float32:
        return 16
    # Convolutions' own setting: cudnn.allow_tf32 raises where those of convolutions and of RNNs differ.
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # an attribute of the module's class
    return 19 if conv.fp32_precision == "tf32" else 32


def _variant(kernel: Any, pointers: dict[str, str], constants: dict, warps: int, stages: int) -> Variant:
    """A variant whose integer arguments are as the kernel annotates them; constants in the kernel's order."""
    types, ordered = [], []
    for name, parameter in signature(kernel.fn).parameters.items():
        if parameter.annotation is tl.constexpr:
            ordered.append((name, constants[name]))
        elif parameter.annotation is Parameter.empty:
            types.append((name, "*" + pointers[name]))
        else:
            types.append((name, {"int32": "i32", "int64": "i64"}[parameter.annotation.name]))
    return Variant(kernel, tuple(types), tuple(ordered), warps, stages)


@cache
def product_variant(dtype: torch.dtype, bits: int, mode: str, vector: int, gradient: bool, tile: Tile) -> Variant:
    element = type_name(dtype)
    pointers = dict.fromkeys(("x", "weight", "bias", "residual", "output", "saved"), element)
    constants = {
        "MODE": mode,
        "VECTOR": vector,
        "WIDEST": 16 // dtype.itemsize,
        "GRADIENT": gradient,
        "PRECISION": "ieee" if bits == 32 else "tf32",
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_K": tile.depth,
        "SLICE": schedule.finished_at_a_time(tile),
    }
    return _variant(product, pointers, constants, tile.warps, tile.stages)


@cache
def weight_variant(dtype: torch.dtype, bits: int, mode: str, vector: int, grad_vector: int, tile: Tile) -> Variant:
    element = type_name(dtype)
    pointers = {"grad": element, "x": element, "partial": "fp32"}
    constants = {
        "MODE": mode,
        "VECTOR": vector,
        "GRAD_VECTOR": grad_vector,
        "PRECISION": "ieee" if bits == 32 else "tf32",
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_K": tile.depth,
    }
    variant = _variant(weight_sums, pointers, constants, tile.warps, tile.stages)
    return replace(variant, may_fill_registers=dtype == torch.float32 and mode == "flat")


@cache
def column_variant(dtype: torch.dtype, vector: int) -> Variant:
    pointers = {"grad": type_name(dtype), "partial": "fp32"}
    constants = {"VECTOR": vector, "BLOCK_M": ROWS_BLOCK[0], "BLOCK_N": ROWS_BLOCK[1]}
    return _variant(column_sums, pointers, constants, 4, 3)


@cache
def chunks_variant(dtype: torch.dtype, block: tuple[int, int]) -> Variant:
    constants = {"ROWS": block[0], "BLOCK": block[1]}
    return _variant(add_chunks, {"partial": "fp32", "output": type_name(dtype)}, constants, 4, 3)


def variants(architecture: int) -> list[Variant]:
    """Every variant that an architecture's tables can launch."""
    listed = []
    for dtype in DTYPES:
        widest = 16 // dtype.itemsize
        listed += [column_variant(dtype, 1), column_variant(dtype, widest)]
        listed += [chunks_variant(dtype, block) for block in SUM_BLOCKS]
        for bits in (32, 19) if dtype == torch.float32 else (16,):
            for mode, vectors in (("taps", (widest,)), ("flat", (1,)), ("merged", (1, widest))):
                for vector in vectors:
                    for tile in schedule.product_tiles(architecture, bits, mode):
                        for gradient in (False, True):
                            listed.append(product_variant(dtype, bits, mode, vector, gradient, tile))
                    for tile in schedule.weight_tiles(architecture, bits, mode):
                        for grad_vector in (1, widest) if mode == "flat" else (vector,):
                            listed.append(weight_variant(dtype, bits, mode, vector, grad_vector, tile))
    return listed

"""Every compiled kernel of attention: the variant a launch needs, and the list of all that can be launched."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import torch

from . import DTYPES
from .attention_backward import (
    attention_backward_keys_kernel,
    attention_backward_queries_kernel,
    attention_delta_kernel,
)
from .attention_config import HEAD_BLOCKS, Config, config, has_descriptors, row_config
from .attention_decode import attention_decode_kernel, attention_merge_kernel
from .attention_forward import attention_forward_kernel
from .attention_mask_gradient import attention_mask_gradient_kernel
from .attention_tiles import variant_of
from .variants import Variant, type_name

_KERNELS = {
    "forward": attention_forward_kernel,
    "decode": attention_decode_kernel,
    "keys": attention_backward_keys_kernel,
    "queries": attention_backward_queries_kernel,
    "mask": attention_mask_gradient_kernel,
}
# Blocks of rows that each pointer's descriptor has, in the order of (BLOCK_M, BLOCK_N).
_READS_QUERIES, _READS_KEYS = ("query", "grad_output"), ("key", "value")
# These come as plain and as general kernels; the others know masks and dropout only.
_HAS_PLAIN = ("forward", "keys", "queries")
_OTHER_POINTERS = {
    "mask": "*u8",
    "seed": "*i64",
    "logsumexp": "*fp32",
    "delta": "*fp32",
    "part_output": "*fp32",
    "part_peak": "*fp32",
    "part_total": "*fp32",
    "grad_mask": "*fp32",
}


def is_plain_variant(kernel: str, dtype: torch.dtype, is_plain: bool) -> bool:
    """Does a call without mask and dropout get a kernel without them? Not in float32, where products dominate."""
    return is_plain and kernel in _HAS_PLAIN and dtype != torch.float32


def has_precision(kernel: str, precision: str) -> bool:
    """The gradient of a mask, a product's operand nowhere, is computed in full precision always."""
    return kernel != "mask" or precision == "ieee"


def _pointer_types(dtype: torch.dtype, block_d: int, tiles: Config, tma: bool) -> dict[str, str]:
    name = type_name(dtype)
    types = _OTHER_POINTERS | dict.fromkeys(("output", "grad_query", "grad_key", "grad_value"), f"*{name}")
    for names, rows in ((_READS_QUERIES, tiles.block_m), (_READS_KEYS, tiles.block_n)):
        # As Triton writes the type of a host's TensorDescriptor.
        types |= dict.fromkeys(names, f"tensordesc<{name}[1, 1, {rows}, {block_d}]>" if tma else f"*{name}")
    return types


@cache
def product_variant(
    kernel: str, architecture: int, dtype: torch.dtype, block_d: int, plain: bool, tma: bool, precision: str
) -> tuple[Variant, Config]:
    """The variant of a kernel with products, and its tiles."""
    tiles = config(kernel, architecture, dtype, block_d, plain)
    constants: dict[str, object] = {"BLOCK_M": tiles.block_m, "BLOCK_N": tiles.block_n, "BLOCK_D": block_d}
    if kernel in _HAS_PLAIN:
        constants |= {"GENERAL": not plain, "TMA": tma}
    constants["PRECISION"] = precision
    pointers = _pointer_types(dtype, block_d, tiles, tma)
    variant = variant_of(_KERNELS[kernel], pointers, constants, tiles.num_warps, tiles.num_stages)
    return replace(variant, may_fill_registers=dtype == torch.float32), tiles


@cache
def row_variant(kernel: str, dtype: torch.dtype, block_d: int) -> tuple[Variant, Config]:
    """The variant of ``delta`` or ``merge``."""
    tiles = row_config(block_d)
    pointers = _pointer_types(dtype, block_d, tiles, tma=False)
    constants = {"ROWS": tiles.block_m, "BLOCK_D": block_d}
    function = {"delta": attention_delta_kernel, "merge": attention_merge_kernel}[kernel]
    return variant_of(function, pointers, constants, tiles.num_warps, tiles.num_stages), tiles


def _options(kernel: str, architecture: int, dtype: torch.dtype) -> Iterator[tuple[bool, bool, str]]:
    """(plain, tma, precision) of the kernel's variants."""
    if dtype == torch.float32:
        yield from ((False, False, precision) for precision in ("ieee", "tf32") if has_precision(kernel, precision))
        return
    yield False, False, "ieee"
    if kernel in _HAS_PLAIN:
        yield True, has_descriptors(architecture, dtype), "ieee"


def variants(architecture: int) -> list[Variant]:
    """Every variant that can be launched on an architecture of :data:`tilewright.triton.variants.ARCHITECTURES`."""
    result = [
        product_variant(kernel, architecture, dtype, block_d, *options)[0]
        for kernel in _KERNELS
        for dtype in DTYPES
        for block_d in HEAD_BLOCKS
        for options in _options(kernel, architecture, dtype)
    ]
    result += [
        row_variant(kernel, dtype, block_d)[0]
        for kernel in ("delta", "merge")
        for dtype in DTYPES
        for block_d in (64, 256)
    ]
    return result

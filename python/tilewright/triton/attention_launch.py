"""The launches of attention's forward: which variant, how many programs, with which arguments."""

from functools import cache

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .attention_config import Config, config, has_descriptors, head_block, row_block
from .attention_problem import AttentionProblem, strides, unit_of
from .attention_schedule import MOST_PACKED_ROWS, ceil_div, heads_per_section, split_keys, uses_split
from .attention_variants import has_precision, is_plain_variant, product_variant, row_variant
from .variants import Variant, architecture_of, launch


@cache
def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors; on the CPU (Triton's interpreter) few, so that small calls are split too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


# --- forward ---------------------------------------------------------------------------------------------------------
def _decode_tiles(problem: AttentionProblem) -> tuple[int, int]:
    """(tiles of packed rows in a key head, BLOCK_N) of the kernel for few queries."""
    architecture, dtype = architecture_of(problem.query.device), problem.query.dtype
    tiles = config("decode", architecture, dtype, head_block(problem.width), False)
    return ceil_div(problem.group * problem.queries, tiles.block_m), tiles.block_n


def wants_decode(problem: AttentionProblem) -> bool:
    rows = problem.group * problem.queries
    if rows > MOST_PACKED_ROWS:
        return False
    device = problem.query.device
    _, block_n = _decode_tiles(problem)
    block_m = config(
        "forward", architecture_of(device), problem.query.dtype, head_block(problem.width), problem.is_plain
    ).block_m
    tiles = problem.batches * problem.heads * ceil_div(problem.queries, block_m)
    return uses_split(rows, problem.keys, tiles, block_n, processors_of(device))


def variant_for(kernel: str, problem: AttentionProblem, *read: Tensor) -> tuple[Variant, Config, bool]:
    """The variant, its tiles, and whether it reads the tensors ``read`` through descriptors. Where they cannot be read
    so, the general kernel steps in, which reads through pointers.
    """
    architecture, dtype = architecture_of(problem.query.device), problem.query.dtype
    plain = is_plain_variant(kernel, dtype, problem.is_plain)
    tma = plain and has_descriptors(architecture, dtype)
    if tma and not all(is_describable(tensor) for tensor in read):
        plain = tma = False
    precision = problem.precision if has_precision(kernel, problem.precision) else "ieee"
    return *product_variant(kernel, architecture, dtype, head_block(problem.width), plain, tma, precision), tma


def is_describable(view: Tensor) -> bool:
    """Can a descriptor hold the tensor? It has no stride 0."""
    strides = view.stride()
    return 0 not in strides or all(stride > 0 or n == 1 for n, stride in zip(view.shape, strides, strict=True))


def source(view: Tensor, rows: int, block_d: int, tma: bool) -> Tensor | TensorDescriptor:
    if not tma:
        return view
    # Dimensions of size 1 have stride 0 here, which a descriptor does not take.
    steps = [stride if stride > 0 else unit_of(view.dtype) for stride in view.stride()]
    return TensorDescriptor(view, list(view.shape), steps, [1, 1, rows, block_d])


def section_of(problem: AttentionProblem, rows: float, heads: int) -> int:
    """Heads side by side, each of which reads that many rows of two tensors again and again."""
    row_bytes = (problem.query.shape[3] + problem.value.shape[3]) * problem.query.element_size()
    return heads_per_section(int(rows * row_bytes), heads)


def launch_forward(problem: AttentionProblem, output: Tensor, logsumexp: Tensor) -> None:
    variant, tiles, tma = variant_for("forward", problem, problem.query, problem.key, problem.value)
    block_d = head_block(problem.width)
    blocks = ceil_div(problem.queries, tiles.block_m)
    total_heads = problem.batches * problem.heads
    arguments = {
        **problem.common,
        **problem.forward_scales(),
        **strides("o", output),
        "query": source(problem.query, tiles.block_m, block_d, tma),
        "key": source(problem.key, tiles.block_n, block_d, tma),
        "value": source(problem.value, tiles.block_n, block_d, tma),
        "output": output,
        "logsumexp": logsumexp,
        "total_heads": total_heads,
        "blocks": blocks,
        "section": section_of(problem, problem.keys / problem.group, total_heads),
    }
    launch(variant, (total_heads * blocks,), arguments)


def launch_decode(problem: AttentionProblem, output: Tensor, logsumexp: Tensor) -> None:
    variant, _, _ = variant_for("decode", problem)
    tiles, block_n = _decode_tiles(problem)
    device = problem.query.device
    total_heads, programs = problem.batches * problem.heads, problem.batches * problem.key_heads * tiles
    split = split_keys(problem.keys, block_n, programs, processors_of(device))
    rows, width = total_heads * problem.queries, output.shape[3]
    # One chunk writes the result itself; the partial tensors are then never touched.
    parts = split.count if split.count > 1 else 0
    part_output = torch.empty(parts, rows, width, dtype=torch.float32, device=device)
    part_peak = torch.empty(parts, rows, dtype=torch.float32, device=device)
    part_total = torch.empty_like(part_peak)
    arguments = {
        **problem.common,
        **problem.forward_scales(),
        **strides("o", output),
        "query": problem.query,
        "key": problem.key,
        "value": problem.value,
        "output": output,
        "logsumexp": logsumexp,
        "part_output": part_output,
        "part_peak": part_peak,
        "part_total": part_total,
        "total_heads": total_heads,
        "tiles": tiles,
        "chunks": split.count,
        "chunk": split.chunk,
    }
    launch(variant, (programs * split.count,), arguments)
    if split.count == 1:
        return
    merge, merge_tiles = row_variant("merge", output.dtype, row_block(width))
    arguments = {
        **strides("o", output),
        "part_output": part_output,
        "part_peak": part_peak,
        "part_total": part_total,
        "output": output,
        "logsumexp": logsumexp,
        "heads": problem.heads,
        "queries": problem.queries,
        "value_size": width // unit_of(output.dtype),
        "chunks": split.count,
        "rows": rows,
        **{name: problem.forward_scales()[name] for name in ("factor", "natural", "keep_scale")},
    }
    launch(merge, (ceil_div(rows, merge_tiles.block_m),), arguments)

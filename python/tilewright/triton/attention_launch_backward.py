"""The launches of attention's backward."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .attention_config import head_block, row_block
from .attention_launch import processors_of, section_of, source, variant_for
from .attention_problem import AttentionProblem, strides, unit_of
from .attention_schedule import MaskHeads, ceil_div, cut_in_parts, mask_heads
from .attention_variants import row_variant
from .variants import launch


def launch_delta(problem: AttentionProblem, output: Tensor, grad_output: Tensor, delta: Tensor) -> None:
    """delta = rowsum(dO * O), [heads, Sq]."""
    width = output.shape[3]
    variant, tiles = row_variant("delta", output.dtype, row_block(width))
    blocks = ceil_div(problem.queries, tiles.block_m)
    arguments = {
        **strides("o", output),
        **strides("d", grad_output),
        "output": output,
        "grad_output": grad_output,
        "delta": delta,
        "heads": problem.heads,
        "queries": problem.queries,
        "value_size": width // unit_of(output.dtype),
        "blocks": blocks,
    }
    launch(variant, (problem.batches * problem.heads * blocks,), arguments)


def _backward_arguments(
    problem: AttentionProblem, grad_output: Tensor, logsumexp: Tensor, delta: Tensor
) -> dict[str, object]:
    return {
        **problem.common,
        **problem.backward_scales(),
        **strides("d", grad_output),
        "logsumexp": logsumexp,
        "delta": delta,
        "query": problem.query,
        "key": problem.key,
        "value": problem.value,
        "grad_output": grad_output,
    }


def _sources(
    problem: AttentionProblem, grad_output: Tensor, block_m: int, block_n: int, tma: bool
) -> dict[str, object]:
    block_d = head_block(problem.width)
    return {
        "query": source(problem.query, block_m, block_d, tma),
        "grad_output": source(grad_output, block_m, block_d, tma),
        "key": source(problem.key, block_n, block_d, tma),
        "value": source(problem.value, block_n, block_d, tma),
    }


def launch_backward_keys(
    problem: AttentionProblem,
    grad_output: Tensor,
    logsumexp: Tensor,
    delta: Tensor,
    grad_key: Tensor | None,
    grad_value: Tensor | None,
) -> None:
    """Gradients of key and value; None: not wanted (the other one is there)."""
    read = (problem.query, problem.key, problem.value, grad_output)
    variant, tiles, tma = variant_for("keys", problem, *read)
    blocks, key_heads = ceil_div(problem.keys, tiles.block_n), problem.batches * problem.key_heads
    # Of a gradient that is not wanted, only the type is looked at.
    to_key = problem.key if grad_key is None else grad_key
    to_value = problem.value if grad_value is None else grad_value
    arguments = {
        **_backward_arguments(problem, grad_output, logsumexp, delta),
        **_sources(problem, grad_output, tiles.block_m, tiles.block_n, tma),
        **strides("gk", to_key),
        **strides("gv", to_value),
        "grad_key": to_key,
        "grad_value": to_value,
        "total_heads": key_heads,
        "blocks": blocks,
        "section": section_of(problem, problem.queries * problem.group, key_heads),
        "wants_key": int(grad_key is not None),
        "wants_value": int(grad_value is not None),
    }
    launch(variant, (key_heads * blocks,), arguments)


def launch_backward_queries(
    problem: AttentionProblem, grad_output: Tensor, logsumexp: Tensor, delta: Tensor, grad_query: Tensor | None
) -> None:
    """The gradient of query; None: write delta = sum over keys of P * dP instead."""
    read = (problem.query, problem.key, problem.value, grad_output)
    variant, tiles, tma = variant_for("queries", problem, *read)
    blocks, total_heads = ceil_div(problem.queries, tiles.block_m), problem.batches * problem.heads
    to_query = problem.query if grad_query is None else grad_query
    arguments = {
        **_backward_arguments(problem, grad_output, logsumexp, delta),
        **_sources(problem, grad_output, tiles.block_m, tiles.block_n, tma),
        **strides("gq", to_query),
        "grad_query": to_query,
        "total_heads": total_heads,
        "blocks": blocks,
        "section": section_of(problem, problem.keys / problem.group, total_heads),
        "makes_delta": int(grad_query is None),
    }
    launch(variant, (total_heads * blocks,), arguments)


def launch_mask_gradient(
    problem: AttentionProblem,
    leading: Sequence[int],
    grad_output: Tensor,
    logsumexp: Tensor,
    delta: Tensor,
    grad_mask: Tensor,
) -> None:
    """The gradient of a float mask: contiguous, of the mask's own shape. leading: the call's sizes before Sq."""
    *own, rows, columns = (1,) * (len(leading) + 2 - grad_mask.dim()) + tuple(grad_mask.shape)
    cut = mask_heads(leading, [size == its for size, its in zip(leading, own, strict=True)])
    # Kept and broadcast dimensions that alternate more than kernels know: a gradient per head, summed afterwards.
    slices_are_heads = cut is None
    if cut is None:
        cut = MaskHeads(problem.batches * problem.heads, 1, 1, 1)
    variant, tiles, _ = variant_for("mask", problem)
    row_blocks, column_blocks = ceil_div(problem.queries, tiles.block_m), ceil_div(problem.keys, tiles.block_n)
    row_tiles, row_walk = (1, row_blocks) if rows == 1 else (row_blocks, 1)
    column_tiles, column_walk = (1, column_blocks) if columns == 1 else (column_blocks, 1)
    programs, items = cut.slices * row_tiles * column_tiles, cut.shared * row_walk * column_walk
    parts, items_per_part = cut_in_parts(items, programs, processors_of(grad_mask.device))
    is_direct = parts == 1 and grad_mask.dtype == torch.float32 and not slices_are_heads
    sums = grad_mask
    if not is_direct:
        sums = torch.empty(parts, cut.slices * rows * columns, dtype=torch.float32, device=grad_mask.device)
    arguments = {
        **_backward_arguments(problem, grad_output, logsumexp, delta),
        "grad_mask": sums,
        "slices": cut.slices,
        "shared0": cut.shared0,
        "kept1": cut.kept1,
        "shared1": cut.shared1,
        "mask_rows": rows,
        "mask_columns": columns,
        "row_tiles": row_tiles,
        "column_tiles": column_tiles,
        "row_walk": row_walk,
        "column_walk": column_walk,
        "items": items,
        "items_per_part": items_per_part,
        "parts": parts,
    }
    launch(variant, (programs * parts,), arguments)
    if is_direct:
        return
    total = sums.sum(0)
    if slices_are_heads:
        total = total.view(*leading, rows, columns).sum_to_size(*own, rows, columns)
    grad_mask.copy_(total.view(grad_mask.shape))

"""Fake kernels of attention."""

from collections.abc import Sequence

import torch
from torch import Tensor


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.register_fake("tilewright::attention_forward")
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    if dropout_p == 0 and query.shape[-1] == value.shape[-1]:
        output = torch.empty_like(query)
    else:
        output = query.new_empty([*query.shape[:-1], value.shape[-1]])
    return output, query.new_empty(query.shape[:-1], dtype=_accumulation_dtype(query.dtype))


def _gradient_of(tensor: Tensor, wanted: bool) -> Tensor | None:
    if not wanted:
        return None
    rows_are_contiguous = tensor.shape[-1] <= 1 or tensor.stride(-1) == 1
    return torch.empty_like(tensor) if rows_are_contiguous else tensor.new_empty(tensor.shape)


@torch.library.register_fake("tilewright::attention_backward")
def _backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    attn_mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    grad_mask = attn_mask.new_empty(attn_mask.shape) if output_mask[3] and attn_mask is not None else None
    return (
        _gradient_of(query, output_mask[0]),
        _gradient_of(key, output_mask[1]),
        _gradient_of(value, output_mask[2]),
        grad_mask,
    )

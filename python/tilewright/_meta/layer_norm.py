"""Fake kernels of layer_norm."""

from collections.abc import Sequence

import torch
from torch import Tensor


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.register_fake("tilewright::layer_norm_forward")
def _forward(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    stat_shape = [*input.shape[: input.dim() - len(normalized_shape)], *[1] * len(normalized_shape)]
    statistics = _accumulation_dtype(input.dtype)
    return (
        input.new_empty(input.shape),
        input.new_empty(stat_shape, dtype=statistics),
        input.new_empty(stat_shape, dtype=statistics),
    )


@torch.library.register_fake("tilewright::layer_norm_backward")
def _backward(
    grad_output: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    parameter_dtype = weight.dtype if weight is not None else input.dtype
    grad_input = input.new_empty(input.shape) if output_mask[0] else None
    grad_weight = input.new_empty(normalized_shape, dtype=parameter_dtype) if output_mask[1] else None
    grad_bias = input.new_empty(normalized_shape, dtype=parameter_dtype) if output_mask[2] else None
    return grad_input, grad_weight, grad_bias

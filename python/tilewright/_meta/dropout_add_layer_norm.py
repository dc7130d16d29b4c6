"""Fake kernels of dropout_add_layer_norm."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .layer_norm import _accumulation_dtype


@torch.library.register_fake("tilewright::dropout_add_layer_norm_forward")
def _forward(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    seed: Tensor | None,
    p: float,
    keep_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stat_shape = [*input.shape[: input.dim() - len(normalized_shape)], *[1] * len(normalized_shape)]
    statistics = _accumulation_dtype(input.dtype)
    return (
        input.new_empty(input.shape),
        input.new_empty(input.shape if keep_sum else [0]),
        input.new_empty(stat_shape, dtype=statistics),
        input.new_empty(stat_shape, dtype=statistics),
    )


@torch.library.register_fake("tilewright::dropout_add_layer_norm_backward")
def _backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    sum: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    seed: Tensor | None,
    p: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    parameter_dtype = weight.dtype if weight is not None else sum.dtype
    grad_input = sum.new_empty(sum.shape) if output_mask[0] else None
    grad_residual = sum.new_empty(sum.shape) if output_mask[1] else None
    grad_weight = sum.new_empty(normalized_shape, dtype=parameter_dtype) if output_mask[2] else None
    grad_bias = sum.new_empty(normalized_shape, dtype=parameter_dtype) if output_mask[3] else None
    return grad_input, grad_residual, grad_weight, grad_bias

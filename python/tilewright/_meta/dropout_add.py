"""Fake kernels of dropout_add."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .dropout import empty_pointwise


@torch.library.register_fake("tilewright::dropout_add_forward")
def _forward(input: Tensor, residual: Tensor, bias: Tensor | None, seed: Tensor, p: float) -> Tensor:
    return empty_pointwise(residual) if bias is None else residual.new_empty(residual.shape)


@torch.library.register_fake("tilewright::dropout_add_backward")
def _backward(
    grad_output: Tensor, seed: Tensor, p: float, output_mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    grad_input = grad_output.new_empty(grad_output.shape) if output_mask[0] else None
    grad_bias = grad_output.new_empty(grad_output.shape[-1:]) if output_mask[1] else None
    return grad_input, grad_bias

"""Fake kernels of matmul and baddbmm."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.register_fake("tilewright::matmul_forward")
def _forward(input: Tensor, other: Tensor) -> Tensor:
    return input.new_empty(torch.matmul(input, other).shape)


@torch.library.register_fake("tilewright::matmul_backward")
def _backward(
    grad_output: Tensor,
    input: Tensor | None,
    other: Tensor | None,
    input_shape: Sequence[int],
    other_shape: Sequence[int],
    alpha: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    return (
        grad_output.new_empty(input_shape) if output_mask[0] else None,
        grad_output.new_empty(other_shape) if output_mask[1] else None,
    )


@torch.library.register_fake("tilewright::baddbmm_forward")
def _baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, beta: float, alpha: float) -> Tensor:
    return batch1.new_empty(torch.baddbmm(input, batch1, batch2).shape)

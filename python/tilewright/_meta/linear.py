"""Fake kernels of linear and of the activations' gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .activation import gradient_reads_input


@torch.library.register_fake("tilewright::linear_forward")
def _forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, saves: bool
) -> tuple[Tensor, Tensor | None]:
    shape = torch.nn.functional.linear(input, weight, bias).shape
    saves_pre = saves and gradient_reads_input(activation)
    return input.new_empty(shape), input.new_empty(shape) if saves_pre else None


@torch.library.register_fake("tilewright::linear_backward")
def _backward(
    grad_output: Tensor, input: Tensor | None, weight: Tensor | None, output_mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    out = grad_output.shape[-1]
    grad_input = grad_weight = grad_bias = None
    if output_mask[0] and weight is not None:
        grad_input = grad_output.new_empty([*grad_output.shape[:-1], weight.shape[1]])
    if output_mask[1] and input is not None:
        grad_weight = grad_output.new_empty([out, input.shape[-1]])
    if output_mask[2]:
        grad_bias = grad_output.new_empty([out])
    return grad_input, grad_weight, grad_bias


@torch.library.register_fake("tilewright::activation_backward")
def _activation_backward(grad_output: Tensor, saved: Tensor, activation: str) -> Tensor:
    return torch.empty_like(saved)

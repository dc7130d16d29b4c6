"""Fake kernels of dropout."""

import torch
from torch import Tensor


def empty_pointwise(tensor: Tensor) -> Tensor:
    """The result of native's input * noise, whose strides are ours too (see cpu/dropout.h)."""
    if tensor.is_contiguous():  # dimensions of size 1 get the strides of a new tensor
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(tensor, memory_format=torch.channels_last)
    return torch.mul(tensor, torch.empty_like(tensor))


@torch.library.register_fake("tilewright::dropout_seed")
def _seed(input: Tensor) -> Tensor:
    return input.new_empty([1], dtype=torch.int64)


@torch.library.register_fake("tilewright::dropout_forward")
def _forward(input: Tensor, seed: Tensor, p: float) -> Tensor:
    return empty_pointwise(input)


@torch.library.register_fake("tilewright::dropout_forward_")
def _forward_inplace(input: Tensor, seed: Tensor, p: float) -> None:
    return None


@torch.library.register_fake("tilewright::dropout_forward_keeping")
def _forward_keeping(input: Tensor, seed: Tensor, p: float) -> tuple[Tensor, Tensor]:
    return empty_pointwise(input), input.new_empty([(input.numel() + 7) // 8 + 4], dtype=torch.uint8)


@torch.library.register_fake("tilewright::dropout_backward")
def _backward(grad_output: Tensor, seed: Tensor, p: float, keep_bits: Tensor | None = None) -> Tensor:
    return empty_pointwise(grad_output)


@torch.library.register_fake("tilewright::dropout_mask")
def _mask(like: Tensor, seed: Tensor, p: float) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.bool)

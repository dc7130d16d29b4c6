"""Fake kernels of depthwise convolution: those of conv2d with as many groups as input channels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import conv2d


def _groups(input: Tensor) -> int:
    return input.shape[1] if input.dim() == 4 else 1


@torch.library.register_fake("tilewright::depthwise_forward")
def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    saves: bool,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    groups = _groups(input)
    return conv2d._forward(input, weight, bias, stride, padding, dilation, groups, activation, saves, residual)


@torch.library.register_fake("tilewright::depthwise_backward")
def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return conv2d._backward(grad_output, input, weight, stride, padding, dilation, _groups(input), output_mask)

"""Fake kernels of conv2d."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .activation import gradient_reads_input


def _is_channels_last(tensor: Tensor) -> bool:
    return torch._prims_common.suggest_memory_format(tensor) == torch.channels_last


def result_format(input: Tensor, weight: Tensor) -> torch.memory_format:
    last = _is_channels_last(input) or _is_channels_last(weight)
    return torch.channels_last if last else torch.contiguous_format


def result_size(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[list[int], bool]:
    """The output's shape, and whether anything is empty. Raises where the kernel would."""
    torch._check(input.dim() == 4, lambda: f"conv2d: input must be [C, H, W] or [N, C, H, W], got {input.shape}")
    torch._check(weight.dim() == 4, lambda: f"conv2d: weight must have four dimensions, got {weight.shape}")
    torch._check(groups > 0, lambda: f"conv2d: groups must be positive, got {groups}")
    torch._check(
        weight.shape[1] * groups == input.shape[1] and weight.shape[0] % groups == 0,
        lambda: f"conv2d: weight {weight.shape} does not fit input {input.shape} and groups = {groups}",
    )
    torch._check(input.dtype == weight.dtype, lambda: f"conv2d: weight must be {input.dtype}, got {weight.dtype}")
    for name, values, smallest in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        torch._check(
            all(v >= smallest for v in values),
            lambda name=name, values=values, smallest=smallest: (
                f"conv2d: {name} must be at least {smallest}, got {values}"
            ),
        )
    size = [input.shape[0], weight.shape[0]]
    for d in (0, 1):
        padded = input.shape[2 + d] + 2 * padding[-1 if d else 0]
        reach = dilation[-1 if d else 0] * (weight.shape[2 + d] - 1) + 1
        torch._check(
            reach <= padded,
            lambda reach=reach, padded=padded: (
                f"conv2d: the kernel must not be larger than the padded input ({padded}), got {reach}"
            ),
        )
        size.append((padded - reach) // stride[-1 if d else 0] + 1)
    return size, any(n == 0 for n in (*size, input.shape[1]))


@torch.library.register_fake("tilewright::conv2d_forward")
def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    saves: bool,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    size, empty = result_size(input, weight, stride, padding, dilation, groups)
    torch._check(
        bias is None or (bias.dim() == 1 and bias.shape[0] == weight.shape[0]),
        lambda: f"conv2d: bias must have shape [{weight.shape[0]}], got {bias.shape if bias is not None else None}",
    )
    memory_format = torch.contiguous_format if empty else result_format(input, weight)
    output = torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format)
    saves_pre = saves and gradient_reads_input(activation)
    return output, torch.empty_like(output) if saves_pre else None


@torch.library.register_fake("tilewright::conv2d_backward")
def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    _, empty = result_size(input, weight, stride, padding, dilation, groups)
    memory_format = result_format(input, weight)

    # Where one channel or a 1x1 kernel makes weights of both formats, native's float64 path without
    # dilation keeps the given strides.
    weight_format = memory_format
    if weight.dtype == torch.float64 and all(d == 1 for d in dilation):
        weight_format = torch._prims_common.suggest_memory_format(weight.contiguous(memory_format=memory_format))

    def like(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format)

    grad_bias = weight.new_empty(weight.shape[0]) if output_mask[2] else None
    if empty:
        return (
            input.new_empty(input.shape) if output_mask[0] else None,
            torch.empty_like(weight) if output_mask[1] else None,
            grad_bias,
        )
    return (
        like(input, memory_format) if output_mask[0] else None,
        like(weight, weight_format) if output_mask[1] else None,
        grad_bias,
    )

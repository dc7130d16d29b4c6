"""Fake kernels of batch_norm."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from .activation import gradient_reads_input


def _format(input: Tensor) -> torch.memory_format:
    """The first format that input is contiguous in, as csrc/cpu/batch_norm_plan.h chooses it."""
    ranks = {torch.contiguous_format: input.dim(), torch.channels_last: 4, torch.channels_last_3d: 5}
    for memory_format, rank in ranks.items():
        if input.dim() == rank and input.is_contiguous(memory_format=memory_format):
            return memory_format
    return suggest_memory_format(input)


def _like(input: Tensor) -> Tensor:
    return torch.empty_like(input, memory_format=_format(input))


def _per_channel(input: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    accumulation = torch.float64 if input.dtype == torch.float64 else torch.float32
    return input.new_empty([input.shape[1]], dtype=dtype or accumulation)


def _saved(input: Tensor, activation: str) -> Tensor | None:
    """What the activation's gradient reads; of relu and relu6 bits, lines of which begin a byte (batch_norm_plan.h)."""
    if gradient_reads_input(activation):
        return _like(input)
    if activation == "none" or input.device.type != "cpu":
        return None
    channels, count = input.shape[1], input.numel() // max(input.shape[1], 1)
    if channels > 1 and (_format(input) != torch.contiguous_format or count == input.shape[0]):
        lines, length = count, channels
    else:
        images = 1 if channels == 1 else input.shape[0]
        lines, length = images * channels, count // max(images, 1)
    return input.new_empty([lines * ((length + 7) // 8) + 4], dtype=torch.uint8)


@torch.library.register_fake("tilewright::batch_norm_forward")
def _forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    residual: Tensor | None,
    activation: str,
    saves: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    return _like(input), _per_channel(input), _per_channel(input), _saved(input, activation) if saves else None


@torch.library.register_fake("tilewright::batch_norm_update_stats_")
def _update_stats(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, momentum: float
) -> None:
    return None


@torch.library.register_fake("tilewright::batch_norm_backward")
def _backward(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    activated: Tensor | None,
    eps: float,
    training: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    parameter_dtype = weight.dtype if weight is not None else None
    return (
        torch.empty_like(input, memory_format=suggest_memory_format(input)) if output_mask[0] else None,
        _per_channel(input, parameter_dtype) if output_mask[1] else None,
        _per_channel(input, parameter_dtype) if output_mask[2] else None,
        _like(input) if output_mask[3] else None,
    )

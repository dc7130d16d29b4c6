"""Fake kernels of masked_scale."""

import torch
from torch import Tensor

from .dropout import empty_pointwise


@torch.library.register_fake("tilewright::masked_scale_forward")
def _forward(input: Tensor, mask: Tensor, scale: float) -> Tensor:
    return empty_pointwise(input)

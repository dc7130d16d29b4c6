"""float64 references, written as the formulas stand in textbooks."""

import torch
from torch import Tensor


def layer_norm(x: Tensor, dims: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the last `dims` dimensions, in float64 and differentiable."""
    x = x.double()
    over = tuple(range(-dims, 0))
    mean = x.mean(over, keepdim=True)
    variance = (x - mean).square().mean(over, keepdim=True)
    y = (x - mean) / torch.sqrt(variance + eps)
    if weight is not None:
        y = y * weight.double()
    return y if bias is None else y + bias.double()

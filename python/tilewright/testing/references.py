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


def batch_norm(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Batch norm over every dimension but 1, in float64 and differentiable; mean and var None: the batch's."""
    x = x.double()
    over = [d for d in range(x.dim()) if d != 1]
    per_channel = lambda t: t.double().view([-1 if d == 1 else 1 for d in range(x.dim())])  # noqa: E731
    centre = x.mean(over, keepdim=True) if mean is None else per_channel(mean)
    variance = (x - centre).square().mean(over, keepdim=True) if var is None else per_channel(var)
    y = (x - centre) / torch.sqrt(variance + eps)
    if weight is not None:
        y = y * per_channel(weight)
    return y if bias is None else y + per_channel(bias)

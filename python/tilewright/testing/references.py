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


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """Convolution as a sum over the kernel's taps, in float64 and differentiable: x [N, C, H, W].

    The weights' gradient is summed image by image: as one long chain it would have float64's own error, and native's.
    """
    x, weight = x.double(), weight.double()
    n, c, height, width = x.shape
    filters, group_channels, *kernel = weight.shape
    x = torch.nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    x = x.view(n, groups, c // groups, *x.shape[2:])
    weight = weight.view(groups, filters // groups, group_channels, *kernel).expand(n, -1, -1, -1, -1, -1)
    out = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip((height, width), padding, dilation, kernel, stride, strict=True)
    ]
    y = x.new_zeros(n, groups, filters // groups, *out)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + stride[0] * (out[0] - 1) + 1, stride[0])
            cols = slice(left, left + stride[1] * (out[1] - 1) + 1, stride[1])
            y = y + torch.einsum("ngchw,ngfc->ngfhw", x[..., rows, cols], weight[..., i, j])
    y = y.reshape(n, filters, *out)
    return y if bias is None else y + bias.double().view(-1, 1, 1)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(scale * Q K^T + mask) V in float64 and differentiable; rows that attend to nothing give 0.

    `keep` is a bool mask of attention weights that dropout keeps. Key and value may have fewer heads than query.
    """
    query, key, value = query.double(), key.double(), value.double()
    if query.dim() > 2 and query.shape[-3] != key.shape[-3]:
        group = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(group, -3), value.repeat_interleave(group, -3)
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.double()
    if is_causal:
        logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    hidden = (logits == -torch.inf).all(-1, keepdim=True)
    weights = torch.softmax(logits.masked_fill(hidden, 0.0), -1).masked_fill(hidden, 0.0)
    if keep is not None:
        weights = weights * keep / (1 - dropout_p)
    return weights @ value


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

    def per_channel(t: Tensor) -> Tensor:
        return t.double().view([-1 if d == 1 else 1 for d in range(x.dim())])

    centre = x.mean(over, keepdim=True) if mean is None else per_channel(mean)
    variance = (x - centre).square().mean(over, keepdim=True) if var is None else per_channel(var)
    y = (x - centre) / torch.sqrt(variance + eps)
    if weight is not None:
        y = y * per_channel(weight)
    return y if bias is None else y + per_channel(bias)

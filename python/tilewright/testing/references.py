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
    """Convolution as a sum over the kernel's taps, in float64 and differentiable: x [N, C, H, W]."""
    x, weight = x.double(), weight.double()
    n, c, height, width = x.shape
    filters, group_channels, *kernel = weight.shape
    x = torch.nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    x = x.view(n, groups, c // groups, *x.shape[2:])
    weight = weight.view(groups, filters // groups, group_channels, *kernel)
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
            y = y + torch.einsum("ngchw,gfc->ngfhw", x[..., rows, cols], weight[..., i, j])
    y = y.reshape(n, filters, *out)
    return y if bias is None else y + bias.double().view(-1, 1, 1)

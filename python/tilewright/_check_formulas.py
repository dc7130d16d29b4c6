"""What ``tilewright check`` compares with: native's functions and the textbook formulas, under one set of names."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import functional

SEED = 20  # of the draws; dropout's calls are made with the generator at it


def dropout_mask(shape: torch.Size, p: float) -> Tensor:
    """The scaled keep-mask that tilewright draws for SEED, in float64; AssertionError where it is not one for p."""
    torch.manual_seed(SEED)
    mask = functional.dropout(torch.ones(shape, dtype=torch.float64), p)
    kept = (mask != 0).double().mean().item()
    deviation = math.sqrt(p * (1 - p) / mask.numel())
    assert abs(kept - (1 - p)) <= 5 * deviation + 2**-16, f"kept {kept:.4f} of the elements, expected {1 - p:.4f}"
    assert mask.unique().numel() <= 2, "kept elements are scaled differently"
    return mask


def _activate(x: Tensor, activation: str) -> Tensor:
    match activation:
        case "relu":
            return F.relu(x)
        case "relu6":
            return F.relu6(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "silu":
            return F.silu(x)
    return x


class _Fused:
    """The fused forms written with the plain functions of a subclass."""

    def linear_act(self: Any, x: Tensor, w: Tensor, b: Tensor, *, activation: str) -> Tensor:
        return _activate(self.linear(x, w, b), activation)

    def conv2d_act(self: Any, *args: Any, activation: str, residual: Tensor) -> Tensor:
        return _activate(self.conv2d(*args) + residual, activation)

    def batch_norm_act(self: Any, *args: Any, activation: str, residual: Tensor) -> Tensor:
        return _activate(self.batch_norm(*args) + residual, activation)

    def dropout_add(self: Any, x: Tensor, residual: Tensor, p: float, *, bias: Tensor) -> Tensor:
        return residual + self.dropout(x + bias, p)

    def dropout_add_layer_norm(
        self: Any, x: Tensor, residual: Tensor, shape: Any, w: Tensor, b: Tensor, eps: float, p: float, *, prenorm: bool
    ) -> tuple[Tensor, Tensor]:
        total = residual + self.dropout(x, p)
        return self.layer_norm(total, shape, w, b, eps), total

    def dropout(self, x: Tensor, p: float) -> Tensor:
        return x * dropout_mask(x.shape, p).to(x.dtype)

    def masked_scale(self, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        return x * mask * scale


class _Native(_Fused):
    """torch's functions; dropout by native arithmetic with tilewright's mask, since the patterns differ."""

    conv2d, linear, layer_norm = staticmethod(F.conv2d), staticmethod(F.linear), staticmethod(F.layer_norm)
    batch_norm = staticmethod(F.batch_norm)
    matmul, bmm, baddbmm = staticmethod(torch.matmul), staticmethod(torch.bmm), staticmethod(torch.baddbmm)
    scaled_dot_product_attention = staticmethod(F.scaled_dot_product_attention)


class _Formulas(_Fused):
    """The textbook formulas, differentiable, run in float64."""

    def conv2d(self, x: Tensor, w: Tensor, b: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
        if padding == "same":
            padding = dilation * (w.shape[2] - 1) // 2
        patches = F.unfold(x, w.shape[2:], dilation, padding, stride)  # [N, C * Kh * Kw, Ho * Wo]
        patches = patches.unflatten(1, (groups, -1))
        y = torch.einsum("ngkl,gok->ngol", patches, w.reshape(groups, w.shape[0] // groups, -1))
        rows = x.shape[2] + 2 * padding - dilation * (w.shape[2] - 1) - 1
        return y.reshape(x.shape[0], w.shape[0], rows // stride + 1, -1) + b.view(-1, 1, 1)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        rows, columns = (a if a.dim() > 1 else a[None]), (b if b.dim() > 1 else b[:, None])
        y = (rows.unsqueeze(-1) * columns.unsqueeze(-3)).sum(-2)
        y = y if a.dim() > 1 else y.squeeze(-2)
        return y if b.dim() > 1 else y.squeeze(-1)

    def linear(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return self.matmul(x, w.T) + b

    def bmm(self, a: Tensor, b: Tensor) -> Tensor:
        return self.matmul(a, b)

    def baddbmm(self, c: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float) -> Tensor:
        return beta * c + alpha * self.matmul(a, b)

    def layer_norm(self, x: Tensor, shape: Any, w: Tensor, b: Tensor, eps: float) -> Tensor:
        over = tuple(range(-len(shape), 0))
        centred = x - x.mean(over, keepdim=True)
        return centred / (centred.square().mean(over, keepdim=True) + eps).sqrt() * w + b

    def batch_norm(
        self, x: Tensor, mean: Tensor, var: Tensor, w: Tensor, b: Tensor, training: bool, momentum: float, eps: float
    ) -> Tensor:
        over, shape = [0, *range(2, x.dim())], [-1, *[1] * (x.dim() - 2)]
        running_mean, running_var = mean, var
        if training:
            mean, var = x.mean(over), x.var(over, correction=0)
            running_mean.lerp_(mean.detach(), momentum)
            running_var.lerp_(x.var(over).detach(), momentum)
        y = (x - mean.view(shape)) / (var.view(shape) + eps).sqrt()
        return y * w.view(shape) + b.view(shape)

    def scaled_dot_product_attention(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *, is_causal: bool = False
    ) -> Tensor:
        scores = self.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        return self.matmul(torch.softmax(scores, -1), v)


NATIVE, FORMULAS = _Native(), _Formulas()

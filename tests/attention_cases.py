"""Shapes, masks and the comparison that the files on attention share."""

import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import assert_as_accurate, references

sdpa, native_sdpa = TF.scaled_dot_product_attention, F.scaled_dot_product_attention

# (batch, heads, key heads, Sq, Sk, D, Dv): one of each; a window; tiles with tails; unlike lengths and sizes; grouped
# heads; few queries (streamed) over one and several chunks; more than one block of queries and keys; wide heads.
SHAPES = (
    (1, 1, 1, 1, 1, 1, 1),
    (3, 2, 2, 49, 49, 32, 32),
    (2, 3, 3, 15, 33, 8, 8),
    (2, 4, 2, 37, 70, 17, 5),
    (1, 4, 1, 1, 1100, 24, 40),
    (2, 6, 3, 4, 65, 64, 64),
    (1, 2, 1, 150, 300, 64, 48),
    (1, 1, 1, 20, 40, 300, 257),
)
MASKS = ("none", "causal", "bool", "bool keys", "float", "float rows", "float32", "hidden rows", "window")


def mask_of(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    batch, heads, _, queries, keys, _, _ = shape
    if kind == "bool":
        return torch.rand(batch, 1, queries, keys) > 0.3
    if kind == "bool keys":
        return (torch.arange(keys) < max(1, keys * 2 // 3)).expand(batch, 1, 1, keys)
    if kind == "float":
        return torch.randn(1, heads, queries, keys, dtype=dtype)
    if kind == "float rows":
        return torch.randn(heads, queries, 1, dtype=dtype)
    if kind == "float32":
        return torch.randn(queries, keys)
    if kind == "hidden rows":
        mask = torch.zeros(queries, keys, dtype=dtype)
        mask[::2] = -torch.inf
        mask[:, keys // 2 :] = -torch.inf
        return mask
    if kind == "window":
        return torch.ones(queries, keys, dtype=torch.bool).tril(2).triu(-3)
    return None


def inputs_of(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    batch, heads, key_heads, queries, keys, size, value_size = shape

    def make(*sizes):
        return torch.randn(*sizes, dtype=dtype)

    return [
        make(batch, heads, queries, size),
        make(batch, key_heads, keys, size),
        make(batch, key_heads, keys, value_size),
    ]


def run(function, inputs: list[Tensor], mask: Tensor | None, grad: Tensor, **options) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    if mask is not None and mask.is_floating_point():
        mask = mask.detach().clone().requires_grad_()
        leaves.append(mask)
    output = function(*leaves[:3], mask, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def check(inputs: list[Tensor], mask: Tensor | None, *, by_size: bool = False, **options) -> None:
    grouped = {"enable_gqa": inputs[0].shape[-3] != inputs[1].shape[-3]}
    grad = torch.randn(*inputs[0].shape[:-1], inputs[2].shape[-1], dtype=inputs[0].dtype)
    ours = run(sdpa, inputs, mask, grad, **options, **grouped)
    native = run(native_sdpa, inputs, mask, grad, **options, **grouped)
    reference = run(references.attention, inputs, mask, grad.double(), **options)
    largest = max(c.abs().max().item() for c in reference)
    for name, a, b, c in zip(("output", "dq", "dk", "dv", "dmask"), ours, native, reference, strict=False):
        # The reference rounds in float64 too, in native's own order; and a gradient that is 0 by cancellation (one key,
        # a mask that all keys share) has no size of its own to hold its error against.
        if by_size or a.dtype == torch.float64 or c.abs().max().item() < 1e-12 * largest:
            eps = max(torch.finfo(a.dtype).eps, torch.finfo(inputs[0].dtype).eps)
            torch.testing.assert_close(a.double(), c.double(), rtol=0, atol=32 * eps * largest, msg=name)
        else:
            assert_as_accurate(a, b, c, what=name)

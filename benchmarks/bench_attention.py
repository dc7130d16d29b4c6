"""scaled_dot_product_attention: causal, masks, dropout, grouped heads, decoding, windows, odd sizes; fp32 and bf16."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF

from .cases import FORWARD, TRAIN, Case, Problem, Work, dims, element_size, randn
from .gate import check_keep_share

MODEL = (
    "Flops: 2 B H Sq Sk (D + Dv) forward, two products; backward five more (the scores are computed again), so 3.5 "
    "times that in all. Causal counts the pairs that attend only. Softmax and dropout are not counted. Bytes: q, k, v "
    "and the output once forward; backward reads them and dy and writes three gradients. Shapes are BxHxSqxD, or "
    "BxHxSqxSkxD; 'BSHD' means views of [B, S, H, D] tensors."
)
P = 0.1


def _mask(kind: str, b: int, h: int, sq: int, sk: int, dtype: torch.dtype) -> Tensor | None:
    if kind == "bool mask":  # a band, so that every row attends somewhere
        return (torch.arange(sq)[:, None] - torch.arange(sk)[None, :]).abs() < max(sk // 2, 1)
    if kind == "padding":  # a quarter of the keys of every second sequence
        keep = torch.ones(b, 1, 1, sk, dtype=torch.bool)
        keep[::2, ..., -(sk // 4) :] = False
        return keep
    return randn(1, h, sq, sk, dtype=dtype, seed=5) if kind == "bias" else None


def _recover_dropped(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """The keep-mask: with the identity for values the output is the matrix of dropped probabilities."""
    identity = torch.eye(k.shape[-2], dtype=v.dtype).expand(*v.shape[:2], -1, -1)
    keep = TF.scaled_dot_product_attention(q, k, identity, **options) != 0
    check_keep_share(keep, P)
    return keep


def _masked(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return (scores.softmax(-1) * keep.to(q.dtype) * (1 / (1 - P))) @ v


def _case(shape: str, dtype: torch.dtype = torch.float32, kind: str = "", kv_heads: int = 0, **options: Any) -> Case:
    """kind: causal, bool mask, padding, bias, dropout, BSHD or nothing; kv_heads: heads of keys and values (GQA)."""
    b, h, sq, *rest = dims(shape)
    sk, d = (rest[0], rest[1]) if len(rest) == 2 else (sq, rest[0])

    def tensor(heads: int, length: int, seed: int) -> Tensor:
        if kind == "BSHD":
            return randn(b, length, heads, d, dtype=dtype, seed=seed).transpose(1, 2)
        return randn(b, heads, length, d, dtype=dtype, seed=seed)

    def build() -> Problem:
        mask = _mask(kind, b, h, sq, sk, dtype)
        arguments: dict[str, Any] = {
            "is_causal": kind == "causal",
            "dropout_p": P if kind == "dropout" else 0.0,
            "enable_gqa": kv_heads > 0,
        }

        def native(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, mask, **arguments)

        def ours(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            return TF.scaled_dot_product_attention(q, k, v, mask, **arguments)

        pairs = sum(min(i + 1, sk) for i in range(sq)) if kind == "causal" else sq * sk
        flops = 4.0 * b * h * pairs * d
        moved = element_size(dtype) * b * d * (2 * h * sq + 2 * (kv_heads or h) * sk)
        return Problem(
            inputs=[
                tensor(h, sq, 0),
                tensor(kv_heads or h, sk, 1),
                tensor(kv_heads or h, sk, 2),
                *([] if mask is None else [mask]),
            ],
            native=native,
            ours=ours,
            work={FORWARD: Work(flops, moved), TRAIN: Work(3.5 * flops, 3 * moved)},
            differentiable=(0, 1, 2),
            masked=_masked if kind == "dropout" else None,
            recover=(lambda *tensors: _recover_dropped(*tensors, **arguments)) if kind == "dropout" else None,
        )

    detail = " ".join(filter(None, [kind, f"{kv_heads} kv heads" if kv_heads else ""])) or "contiguous"
    return Case("attention", "sdpa", shape, build, dtype, detail, **options)


_BF16, _FORWARD_ONLY = torch.bfloat16, (FORWARD,)

CASES = [
    _case("8x12x128x64", quick=True),
    _case("2x12x512x64", quick=True),
    _case("2x12x512x64", kind="causal", quick=True),
    _case("16x8x128x32", kind="causal", quick=True),
    _case("1x16x2048x128", directions=_FORWARD_ONLY),
    _case("1x8x1024x64", kind="causal"),
    _case("8x6x197x64", kind="BSHD", quick=True),
    _case("2x12x512x64", kind="bool mask", quick=True),
    _case("4x12x256x64", kind="padding"),
    _case("4x8x256x64", kind="bias"),
    _case("2x12x512x64", kind="dropout", quick=True),
    _case("8x12x128x64", kind="dropout"),
    _case("1x32x512x64", kv_heads=8, quick=True),
    _case("1x16x1x1900x96", directions=_FORWARD_ONLY, quick=True),
    _case("8x32x1x512x128", kv_heads=8, directions=_FORWARD_ONLY),
    _case("1x32x1x8192x64", kv_heads=1, directions=_FORWARD_ONLY),
    _case("1x8x4x3000x64", directions=_FORWARD_ONLY),
    _case("64x12x49x32", quick=True),
    _case("2x8x333x40"),
    _case("2x8x256x77x64"),
    _case("4x4x100x256x80"),
    _case("8x12x128x64", _BF16, quick=True),
    _case("2x12x512x64", _BF16),
    _case("2x12x512x64", _BF16, "causal", quick=True),
    _case("16x8x128x32", _BF16, "causal"),
    _case("1x16x1x1900x96", _BF16, directions=_FORWARD_ONLY),
    _case("8x32x1x512x128", _BF16, kv_heads=8, directions=_FORWARD_ONLY),
    _case("1x32x1x8192x64", _BF16, kv_heads=1, directions=_FORWARD_ONLY),
    _case("64x12x49x32", _BF16),
]

GPU = [
    _case("1x64x2048x128", _BF16, "causal", kv_heads=8),
    _case("1x64x8192x128", _BF16, "causal", kv_heads=8, quick=True),
    _case("1x64x8192x128", _BF16, kv_heads=8, quick=True),
    _case("4x16x2048x64", _BF16, quick=True),
    _case("4x16x2048x64", _BF16, "dropout", quick=True),
    _case("4x16x1024x64", _BF16, "bool mask"),
    _case("4x16x1024x64", _BF16, "bias"),
    _case("2x8x2048x256", _BF16, "causal"),
    _case("8x32x1x8192x128", _BF16, kv_heads=8, directions=_FORWARD_ONLY, quick=True),
    _case("64x12x49x32", _BF16),
    _case("2x12x1024x64"),
]

# Queries = keys, powers of two and primes; two heads where eight would take minutes. The gate's float64 takes 4096.
_SHORT = (16, 31, 32, 61, 64, 127, 128, 192, 256, 383, 512, 769, 1024, 2048)
_LONG = (4096, 8192, 16384)


def _length(heads: int, s: int, kind: str = "", dtype: torch.dtype = torch.float32) -> Case:
    gate_on = _case(f"1x{heads}x4096x64", dtype, kind).build if s > 4096 else None
    name = f"S, {kind or 'whole'}, {heads} heads"
    return _case(f"1x{heads}x{s}x64", dtype, kind, size=s, axis=name, gate_on=gate_on)


SWEEP = [
    *(_length(8, s) for s in _SHORT),
    *(_length(2, s) for s in _LONG),
    *(_length(8, s, "causal") for s in _SHORT),
    *(_length(2, s, "causal") for s in _LONG),
    *(_length(8, s, dtype=_BF16) for s in _SHORT),
]

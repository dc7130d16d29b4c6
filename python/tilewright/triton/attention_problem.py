"""From attention's Tensors to what its kernels take: views in four dimensions, strides, scalars."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import DTYPES
from .attention_mask import AttentionMask, attention_mask
from .attention_schedule import merged
from .attention_tiles import ELEMENT_MASK, FLOAT_MASK, NO_MASK
from .philox import threshold_halves

_LOG2E = 1.4426950408889634


def unit_of(dtype: torch.dtype) -> int:
    """Elements in 16 bytes, the unit of strides and head sizes."""
    return 16 // dtype.itemsize


def _in_four_dimensions(tensor: Tensor) -> Tensor | None:
    """[*, heads, rows, elements] as [batch, heads, rows, elements] on the same memory, or None: strides forbid it."""
    *batch_sizes, heads, rows, width = tensor.shape if tensor.dim() > 2 else (1, *tensor.shape)
    strides = tensor.stride() if tensor.dim() > 2 else (0, *tensor.stride())
    batch = merged(batch_sizes, strides[:-3])
    if len(batch) > 1:
        return None
    size, stride = batch[0] if batch else (1, 0)
    sizes = (size, heads, rows, width)
    kept = [0 if n == 1 else s for n, s in zip(sizes, (stride, *strides[-3:]), strict=True)]
    return tensor.as_strided(sizes, (*kept[:3], 1 if width == 1 else kept[3]))


def direct_view(tensor: Tensor) -> Tensor | None:
    """The four-dimensional view if kernels can use it: contiguous rows, all of them beginning at 16 bytes."""
    unit, shape = unit_of(tensor.dtype), tensor.shape
    if shape[-1] == 0 or shape[-1] % unit != 0 or tensor.data_ptr() % 16 != 0:
        return None
    if len(shape) == 4:  # nearly always as it should be
        batch, head, row, last = tensor.stride()
        if last == 1 and batch % unit == 0 and head % unit == 0 and row % unit == 0:
            return tensor
    view = _in_four_dimensions(tensor)
    if view is None or view.stride(-1) != 1 or any(stride % unit != 0 for stride in view.stride()[:3]):
        return None
    return view


def _padded_like(tensor: Tensor, zeros: bool) -> Tensor:
    unit = unit_of(tensor.dtype)
    width = max(unit, -(-tensor.shape[-1] // unit) * unit)
    make = torch.zeros if zeros else torch.empty
    return make((*tensor.shape[:-1], width), dtype=tensor.dtype, device=tensor.device)


def readable(tensor: Tensor) -> Tensor:
    """[batch, heads, rows, width] for reading. What kernels cannot read in place is copied once, into rows padded with
    zeros: every row is read many times, so a copy is cheaper than reading element by element.
    """
    view = direct_view(tensor)
    if view is not None:
        return view
    copy = _padded_like(tensor, zeros=tensor.shape[-1] % unit_of(tensor.dtype) != 0 or tensor.shape[-1] == 0)
    copy[..., : tensor.shape[-1]].copy_(tensor)
    result = _in_four_dimensions(copy)
    assert result is not None
    return result


class Writable:
    """A tensor to write: ``view`` is what kernels write, ``finish()`` brings it to the tensor where that is a copy."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        direct = direct_view(tensor)
        self._copy = None if direct is not None else _padded_like(tensor, zeros=False)
        view = direct if self._copy is None else _in_four_dimensions(self._copy)
        assert view is not None
        self.view = view

    def finish(self) -> None:
        if self._copy is not None:
            self.tensor.copy_(self._copy[..., : self.tensor.shape[-1]])


def strides(prefix: str, view: Tensor) -> dict[str, int]:
    """``<prefix>_batch``, ``_head`` and ``_row`` in units of 16 bytes."""
    unit = unit_of(view.dtype)
    batch, head, row, _ = view.stride()
    return {f"{prefix}_batch": batch // unit, f"{prefix}_head": head // unit, f"{prefix}_row": row // unit}


@dataclass(frozen=True)
class AttentionProblem:
    """What all launches of a call share."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: AttentionMask
    seed: object  # a pointer to int64
    dropout_p: float
    causal: bool
    scale: float

    @property
    def batches(self) -> int:
        return self.query.shape[0]

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def key_heads(self) -> int:
        return self.key.shape[1]

    @property
    def group(self) -> int:
        return self.heads // self.key_heads

    @property
    def queries(self) -> int:
        return self.query.shape[2]

    @property
    def keys(self) -> int:
        return self.key.shape[2]

    @property
    def width(self) -> int:
        return max(self.query.shape[3], self.value.shape[3])

    @property
    def is_plain(self) -> bool:
        """No mask, no dropout, and logits grow with q . k."""
        return self.mask.kind == NO_MASK and self.dropout_p == 0 and 0 < self.scale < math.inf

    @property
    def precision(self) -> str:
        """How float32 products are made; 16-bit ones know one way."""
        is_float = self.query.dtype == torch.float32
        # allow_tf32 says the same, but raises once someone has used this newer name.
        return "tf32" if is_float and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"

    @cached_property
    def common(self) -> dict[str, object]:
        """Arguments that the kernels with products share, but for scales."""
        high, low = threshold_halves(self.dropout_p) if self.dropout_p > 0 else (0, 0)
        return {
            **strides("q", self.query),
            **strides("k", self.key),
            **strides("v", self.value),
            **self.mask.scalars(),
            "mask": self.mask.pointer,
            "seed": self.seed,
            "dropout": int(self.dropout_p > 0),
            "threshold_high": high,
            "threshold_low": low,
            "heads": self.heads,
            "group": self.group,
            "queries": self.queries,
            "keys": self.keys,
            "size": self.query.shape[3] // unit_of(self.query.dtype),
            "value_size": self.value.shape[3] // unit_of(self.query.dtype),
            "causal": int(self.causal),
        }

    @property
    def keep_scale(self) -> float:
        return 0.0 if self.dropout_p >= 1 else 1 / (1 - self.dropout_p)

    def forward_scales(self) -> dict[str, float]:
        """From q . k to what a softmax step takes, from there to base 2, and to natural logits.

        Without a float mask logits stay q . k, and the scale enters at the exponential.
        """
        scaled = self.mask.kind in (ELEMENT_MASK, FLOAT_MASK) or not 0 < self.scale < math.inf
        before, after = (self.scale, 1.0) if scaled else (1.0, self.scale)
        return {"scale": before, "factor": after * _LOG2E, "natural": after, "keep_scale": self.keep_scale}

    def backward_scales(self) -> dict[str, float]:
        return {"scale": self.scale, "factor": self.scale * _LOG2E, "keep_scale": self.keep_scale}


def attention_problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> AttentionProblem:
    """Checks that raw ops read and write within their tensors; copies what kernels cannot read in place."""
    _check(query, key, value, mask, seed, dropout_p)
    size = query.shape[-1]
    # Without elements all logits are 0, whatever the scale.
    default = 1 / math.sqrt(size) if size > 0 else 0.0
    queries = readable(query)
    return AttentionProblem(
        queries,
        readable(key),
        readable(value),
        attention_mask(mask, query, key.shape[-2]),
        # A seed is read whether or not it is used; logits are never reached by what stands there then.
        triton.reinterpret(queries, tl.int64) if dropout_p == 0 or seed is None else seed,
        dropout_p,
        is_causal,
        default if scale is None or size == 0 else scale,
    )


def _check(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, seed: Tensor | None, dropout_p: float
) -> None:
    rank = query.dim()
    fits = rank >= 2 and key.dim() == rank and value.dim() == rank and query.shape[-1] == key.shape[-1]
    fits = fits and key.shape[:-1] == value.shape[:-1] and query.shape[:-3] == key.shape[:-3]
    if fits and rank > 2 and query.shape[-3] != key.shape[-3]:
        fits = key.shape[-3] > 0 and query.shape[-3] % key.shape[-3] == 0
    if not fits:
        raise RuntimeError(
            "attention: query [*, H, Sq, D], key [*, Hk, Sk, D] and value [*, Hk, Sk, Dv] with Hk dividing H expected, "
            f"got {list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
        )
    if query.dtype not in DTYPES or key.dtype != query.dtype or value.dtype != query.dtype:
        raise RuntimeError(
            "attention: query, key and value must have one dtype, float32, bfloat16 or float16, got "
            f"{query.dtype}, {key.dtype} and {value.dtype}"
        )
    if mask is not None and mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise RuntimeError(
            f"attention: attn_mask must be bool, float32 or of query's dtype {query.dtype}, got {mask.dtype}"
        )
    if dropout_p > 0 and (seed is None or seed.dtype != torch.int64 or seed.numel() != 1):
        raise RuntimeError(f"attention: dropout needs a seed, one int64 as dropout_seed makes it, got {seed}")
    for name, tensor in (("key", key), ("value", value), ("attn_mask", mask), ("seed", seed)):
        if tensor is not None and tensor.device != query.device:
            raise RuntimeError(f"attention: {name} must be on query's device {query.device}, got {tensor.device}")

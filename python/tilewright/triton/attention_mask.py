"""How attention's kernels read a mask: where it lies, in two dimensions of heads, and what is copied first."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_schedule import merged
from .attention_tiles import BOOL_MASK, ELEMENT_MASK, FLOAT_MASK, NO_MASK

# Offsets from a tile's first row are int32: strides of rows beyond this are taken away by a copy.
_MAX_MASK_STRIDE = 2**22


@dataclass(frozen=True)
class AttentionMask:
    """A mask as kernels read it: heads are cut in two dimensions, [outer, inner_heads]."""

    tensor: Tensor
    kind: int
    outer: int
    inner: int
    inner_heads: int
    row: int
    column: int

    @property
    def pointer(self) -> object:
        return triton.reinterpret(self.tensor, tl.uint8)

    def scalars(self) -> dict[str, int]:
        return {
            "mask_outer": self.outer,
            "mask_inner": self.inner,
            "mask_inner_heads": self.inner_heads,
            "mask_row": self.row,
            "mask_col": self.column,
            "mask_kind": self.kind,
        }


def attention_mask(mask: Tensor | None, query: Tensor, keys: int) -> AttentionMask:
    """The layout of a mask that broadcasts to [*, H, Sq, Sk]; without one, something that is never read."""
    if mask is None:
        return AttentionMask(query, NO_MASK, 0, 0, 1, 0, 0)
    kind = BOOL_MASK if mask.dtype == torch.bool else ELEMENT_MASK if mask.dtype == query.dtype else FLOAT_MASK
    leading, scores = query.shape[:-2], (*query.shape[:-1], keys)
    expanded = mask.expand(scores)
    groups = merged(leading, expanded.stride()[:-2])
    if len(groups) > 2 or expanded.stride(-2) > _MAX_MASK_STRIDE or (keys > 1 and expanded.stride(-1) > 1):
        # What is there once is copied once: a transposed mask must not become one per head.
        seen = [slice(0, 1) if stride == 0 else slice(None) for stride in mask.stride()]
        expanded = mask[tuple(seen)].contiguous().expand(scores)
        groups = merged(leading, expanded.stride()[:-2])
    if len(groups) > 2:
        expanded = mask.expand(*leading, *(1, 1, *mask.shape)[-2:]).contiguous().expand(scores)
        groups = merged(leading, expanded.stride()[:-2])
    outer, inner = [(1, 0), (1, 0), *groups][-2:]
    row, column = expanded.stride()[-2:]
    return AttentionMask(expanded, kind, outer[1], inner[1], inner[0], row, column)

"""Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762).

N batch, L queries, S keys, E embedding, H heads, D = E / H. The projections are read in the caller's layout ([N, L, E]
or [L, N, E]) through strided views [N, H, L, D]; without weights nothing is transposed in memory, no mask expanded.
"""

import math

import torch
from torch import Tensor

from .. import functional
from ._tracing import DropIn, leaf_when_traced


class MultiheadAttention(DropIn, torch.nn.MultiheadAttention):
    """:class:`torch.nn.MultiheadAttention` on tilewright's matmul and attention kernels.

    Constructor, parameters, state_dict, masks, options and errors are torch.nn.MultiheadAttention's. Without weights
    (need_weights=False) attention runs block by block in O(L + S) memory, also with dropout and with masks.
    Where torch's evaluation fast path gives NaN for a query whose keys are all masked, this gives what torch gives in
    training: 0 without weights, NaN with them. Nested tensors take torch's fast path.

    Shape:
        query [L, E], [L, N, E] or, batch_first, [N, L, E]; key [..., S, kdim] and value [..., S, vdim] likewise;
        float32, float64, bfloat16 or float16 (other tensors go to native).

    Raises:
        AssertionError, RuntimeError: torch's own: wrong ranks or sizes, masks of another shape, is_causal without mask.

    Example:
        >>> attention = tilewright.nn.MultiheadAttention(256, 8, batch_first=True)
        >>> x = torch.randn(4, 128, 256)
        >>> y, _ = attention(x, x, x, need_weights=False)
    """

    @leaf_when_traced
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend: the output, shaped as query, and the weights ([N, L, S], or [N, H, L, S] not averaged) or None."""
        if not self._fits(query, key, value, key_padding_mask, attn_mask, is_causal):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        batched = query.dim() == 3
        q, k, v = (self._heads(t, batched) for t in self._project(query, key, value))
        k, v = self._with_extra_keys(k, v)
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._merged_mask(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            y, weights = _attend_with_weights(q, k, v, mask, dropout)
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            y = functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        if not batched or self._gives_batch_major(query, key, value, mask):
            y = functional.linear(y.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
            return (y if batched else y.squeeze(0)), weights
        y = functional.linear(y.permute(2, 0, 1, 3).flatten(2), self.out_proj.weight, self.out_proj.bias)
        return (y.transpose(0, 1) if self.batch_first else y), weights

    def _gives_batch_major(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
        """Whether torch's result would lie in memory as [N, L, E]: its evaluation fast path; elsewhere as [L, N, E]."""
        if self.training or not self.batch_first or query is not key or key is not value:
            return False
        if self.in_proj_weight is None or self.in_proj_bias is None or self.bias_k is not None or self.add_zero_attn:
            return False
        if self.num_heads % 2 != 0 or (mask is not None and mask.dtype != torch.bool):
            return False
        tensors = (query, self.in_proj_weight, self.in_proj_bias, self.out_proj.weight, self.out_proj.bias)
        learns = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return not learns and not torch.is_autocast_enabled() and torch.backends.mha.get_fastpath_enabled()

    def _fits(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> bool:
        """Whether the arguments are valid and ordinary; torch's own forward raises for, or computes, all others."""
        if not all(isinstance(t, Tensor) and not t.is_nested and t.dim() == query.dim() for t in (query, key, value)):
            return False
        if query.dim() not in (2, 3) or not query.is_floating_point() or (is_causal and attn_mask is None):
            return False
        sequence = 1 if query.dim() == 3 and self.batch_first else 0
        batch = 1 if query.dim() == 2 else query.shape[1 - sequence]
        queries, keys = query.shape[sequence], key.shape[sequence]
        sizes = (query.shape[-1], key.shape[-1], value.shape[-1])
        if sizes != (self.embed_dim, self.kdim, self.vdim) or key.shape[:-1] != value.shape[:-1]:
            return False
        if 0 in (batch, queries, keys):
            return False
        if query.dim() == 3 and key.shape[1 - sequence] != batch:
            return False
        if any(
            m is not None and m.dtype != torch.bool and not m.is_floating_point() for m in (key_padding_mask, attn_mask)
        ):
            return False
        padding_shape = (batch, keys) if query.dim() == 3 else (keys,)
        if key_padding_mask is not None and key_padding_mask.shape != padding_shape:
            return False
        return attn_mask is None or attn_mask.shape in (
            (queries, keys),
            (batch * self.num_heads, queries, keys),
        )

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Input projections, in as few products as the arguments allow (the same tensor twice is projected at once)."""
        linear, bias = functional.linear, self.in_proj_bias
        if not self._qkv_same_embed_dim:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            biases = (None, None, None) if bias is None else bias.chunk(3)
            return tuple(linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        if query is key and key is value:
            return linear(query, self.in_proj_weight, bias).chunk(3, dim=-1)
        inputs, parts = ((query, key), (1, 2)) if key is value else ((query, key, value), (1, 1, 1))
        rows = [part * self.embed_dim for part in parts]
        weights = self.in_proj_weight.split(rows)
        biases = (None,) * len(parts) if bias is None else bias.split(rows)
        projected = [linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]
        return tuple(t for p, part in zip(projected, parts, strict=True) for t in p.chunk(part, dim=-1))

    def _heads(self, x: Tensor, batched: bool) -> Tensor:
        """The view [N, H, L, D] of a projection in the caller's layout."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        if not batched:
            return x.transpose(0, 1).unsqueeze(0)
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _with_extra_keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the learnt key and value (add_bias_kv) and the zero ones (add_zero_attn)."""
        one = (k.shape[0], self.num_heads, 1, self.head_dim)
        if self.bias_k is not None and self.bias_v is not None:
            per_head = (1, self.num_heads, 1, self.head_dim)
            k = torch.cat([k, self.bias_k.view(per_head).expand(one)], dim=2)
            v = torch.cat([v, self.bias_v.view(per_head).expand(one)], dim=2)
        if self.add_zero_attn:
            k = torch.cat([k, k.new_zeros(one)], dim=2)
            v = torch.cat([v, v.new_zeros(one)], dim=2)
        return k, v

    def _merged_mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """Both masks in one that broadcasts to [N, H, L, S]: bool (True = attend) or additive; extra keys attended."""
        if attn_mask is not None and padding is not None and attn_mask.dtype != padding.dtype:
            canonical = torch.nn.functional._canonical_mask  # warns, as torch does, that mixed types are deprecated
            padding = canonical(padding, "key_padding_mask", attn_mask.dtype, "attn_mask", q.dtype)
            attn_mask = canonical(attn_mask, "attn_mask", None, "", q.dtype, check_other=False)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (q.shape[0], self.num_heads))
        if padding is not None:
            padding = padding.view(q.shape[0], 1, 1, -1)
        masks = [~m if m.dtype == torch.bool else m for m in (attn_mask, padding) if m is not None]
        if not masks:
            return None
        mask = (
            masks[0]
            if len(masks) == 1
            else masks[0] & masks[1]
            if masks[0].dtype == torch.bool
            else masks[0] + masks[1]
        )
        extra = k.shape[2] - mask.shape[-1]
        if extra:
            mask = torch.nn.functional.pad(mask, (0, extra), value=mask.dtype == torch.bool)
        return mask


def _attend_with_weights(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """Attention by explicit weights: output [N, H, L, D] and the weights after dropout [N, H, L, S], as torch's."""
    batch_and_heads, shape = q.shape[:2], (*q.shape[:3], k.shape[2])
    q, k, v = ((q * math.sqrt(1.0 / q.shape[-1])).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
    if mask is None:
        scores = functional.bmm(q, k.transpose(1, 2))
    else:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -math.inf)
        scores = functional.baddbmm(mask.expand(shape).flatten(0, 1), q, k.transpose(1, 2))
    weights = torch.softmax(scores, dim=-1)
    if dropout > 0.0:
        weights = functional.dropout(weights, dropout)
    y = functional.bmm(weights, v)
    return y.unflatten(0, batch_and_heads), weights.unflatten(0, batch_and_heads)

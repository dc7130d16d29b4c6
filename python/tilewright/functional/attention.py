"""Scaled-dot-product attention."""

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from .._C import direct
from ._errors import check_bool, native_type_errors
from ._overrides import call_override

_attention_op = torch.ops.tilewright.scaled_dot_product_attention.default
_attention_direct = direct.scaled_dot_product_attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale * query @ key^T + attn_mask) @ value, block by block in memory linear in the sequence length.

    Drop-in for :func:`torch.nn.functional.scaled_dot_product_attention` (Vaswani et al. 2017, arXiv:1706.03762; Dao et
    al. 2022, arXiv:2205.14135). Dropout stays in the fused kernel, and a float mask that requires a gradient gets one.

    Args:
        query: [*, H, Sq, D], float32, float64, bfloat16 or float16; other tensors go to native.
        key: [*, H, Sk, D].
        value: [*, H, Sk, Dv].
        attn_mask: broadcastable to [*, H, Sq, Sk]; bool (True: attend) or added to the logits (query's dtype or
            float32). A query that attends to no key gives 0.
        dropout_p: probability with which each attention weight is dropped, whether or not a module is in training.
        is_causal: query i attends to keys 0 ... i. Not together with attn_mask.
        scale: of the logits; None means 1 / sqrt(D).
        enable_gqa: key and value may have fewer heads; query head h uses key head h // (H // Hk).

    Returns:
        Tensor [*, H, Sq, Dv] of query's dtype.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit together, a mask that does not broadcast, a mask together
            with is_causal, dropout_p outside [0, 1].

    Example:
        >>> q = k = v = torch.randn(2, 8, 128, 64)
        >>> y = tilewright.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    """
    if not is_dynamo_compiling():
        result = _attention_direct(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        if result is not None:
            return result
    return _scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


@native_type_errors
def _scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    if has_torch_function_variadic(query, key, value, attn_mask):
        return call_override(
            torch.nn.functional.scaled_dot_product_attention,
            scaled_dot_product_attention,
            (query, key, value, attn_mask),
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
    check_bool("scaled_dot_product_attention", "is_causal", is_causal)
    check_bool("scaled_dot_product_attention", "enable_gqa", enable_gqa)
    return _attention_op(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

"""Hugging Face transformers: ``attn_implementation="tilewright"``.

    import tilewright.integrations.transformers

    tilewright.integrations.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="tilewright")

Needs transformers 4.53 or newer, whose attention interface takes functions by name.
"""

from typing import Any

import torch
from torch import Tensor, nn

import tilewright.functional as TF

NAME = "tilewright"


def register(name: str = NAME) -> str:
    """Make our attention known to transformers under ``name``; returns it. Calling it again changes nothing.

    Every model that looks its attention up in transformers' registry then takes ``attn_implementation=name``, in
    ``from_pretrained``, ``from_config`` and ``set_attn_implementation``. Masks are those of ``"sdpa"``: none where a
    causal flag says as much, else bool. Keys and values shared by several heads are not repeated in memory.

    Raises ImportError where transformers is missing or too old.

    Example::

        register()
        model = BertModel(BertConfig(attn_implementation="tilewright"))
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        raise ImportError(
            "tilewright.integrations.transformers needs transformers 4.53 or newer: pip install 'transformers>=4.53'"
        ) from error
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query [B, H, Sq, D], key and value [B, H or fewer, Sk, D] -> ([B, Sq, H, D], None).

    attention_mask broadcasts to [B, H, Sq, Sk], bool (True attends) or added to the logits; position_bias is added to
    them too. is_causal counts where there is no mask and more than one query; None takes the module's own. The second
    result stands for the attention weights, which no fused attention has. Paged caches (continuous batching) go
    through transformers' own "sdpa".

    Raises ValueError for what the kernel has no place for: ``softcap`` and attention sinks (``s_aux``).
    """
    for option in ("softcap", "s_aux"):
        if options.get(option) is not None:
            raise ValueError(
                f"tilewright's attention has no {option}, which {type(module).__name__} asks for: "
                'use attn_implementation="eager" for this model'
            )
    if options.get("cache") is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if position_bias is not None:
            options["position_bias"] = position_bias
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **options)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    causal = query.shape[2] > 1 and attention_mask is None and bool(is_causal)
    if position_bias is not None:
        attention_mask = _with_bias(position_bias, attention_mask, causal, query.shape[2], key.shape[2])
        causal = False
    output = TF.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


def _with_bias(bias: Tensor, mask: Tensor | None, causal: bool, queries: int, keys: int) -> Tensor:
    """One mask to add: the bias where a query attends, -inf elsewhere."""
    if mask is None and not causal:
        return bias
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=bias.device).tril()
    if mask.dtype is not torch.bool:
        return bias + mask
    return bias.masked_fill(~mask, float("-inf"))

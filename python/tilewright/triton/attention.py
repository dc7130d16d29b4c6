"""Attention on the GPU: the raw ops ``attention_forward`` and ``attention_backward``.

Kernels: :mod:`attention_forward`, :mod:`attention_decode` (few queries), :mod:`attention_backward`,
:mod:`attention_mask_gradient`. Tensors become kernel arguments in :mod:`attention_problem` and
:mod:`attention_mask`, work is cut in :mod:`attention_schedule`, tiles are chosen in
:mod:`attention_config`. docs/attention.md explains all of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .attention_config import serves
from .attention_launch import launch_decode, launch_forward, wants_decode
from .attention_launch_backward import (
    launch_backward_keys,
    launch_backward_queries,
    launch_delta,
    launch_mask_gradient,
)
from .attention_problem import Writable, attention_problem, readable
from .attention_variants import variants

__all__ = ["implementations", "serves", "variants"]


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    _check_served(query, value)
    if dropout_p == 0 and query.shape[-1] == value.shape[-1]:
        output = torch.empty_like(query)
    else:
        output = query.new_empty([*query.shape[:-1], value.shape[-1]])
    logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
    problem = attention_problem(query, key, value, attn_mask, seed, dropout_p, is_causal, scale)
    if logsumexp.numel() == 0:
        return output, logsumexp
    if key.shape[-2] == 0:
        return output.zero_(), logsumexp.fill_(torch.inf)
    written = Writable(output)
    launch_of = launch_decode if wants_decode(problem) else launch_forward
    launch_of(problem, written.view, logsumexp)
    written.finish()
    return output, logsumexp


def attention_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    attn_mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    _check_served(query, value)
    _check_saved(grad_output, query, value, output, logsumexp)
    problem = attention_problem(query, key, value, attn_mask, seed, dropout_p, is_causal, scale)
    grad_query, grad_key, grad_value = (
        _gradient_of(tensor, wanted) for tensor, wanted in zip((query, key, value), output_mask, strict=False)
    )
    grad_mask = None
    if output_mask[3] and attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            raise RuntimeError("attention_backward: a bool attn_mask has no gradient")
        grad_mask = attn_mask.new_empty(attn_mask.shape)
    gradients = (grad_query, grad_key, grad_value, grad_mask)
    if logsumexp.numel() == 0 or key.shape[-2] == 0:
        for gradient in gradients:
            if gradient is not None:
                gradient.zero_()
        return gradients

    d, saved = readable(grad_output), logsumexp.contiguous()
    delta = torch.empty_like(saved)
    if grad_mask is not None and query.dtype != torch.float32:
        # rowsum(dO * O) holds the rounding of O, which a learned mask would show (docs/attention.md).
        launch_backward_queries(problem, d, saved, delta, None)
    elif any(gradient is not None for gradient in (grad_query, grad_key, grad_mask)):
        launch_delta(problem, readable(output), d, delta)
    if grad_key is not None or grad_value is not None:
        written_key, written_value = _written(grad_key), _written(grad_value)
        launch_backward_keys(problem, d, saved, delta, _view(written_key), _view(written_value))
        for written in (written_key, written_value):
            if written is not None:
                written.finish()
    if grad_query is not None:
        written_query = Writable(grad_query)
        launch_backward_queries(problem, d, saved, delta, written_query.view)
        written_query.finish()
    if grad_mask is not None:
        launch_mask_gradient(problem, query.shape[:-2], d, saved, delta, grad_mask)
    return gradients


def _check_served(query: Tensor, value: Tensor) -> None:
    reason = serves(query.shape[-1], value.shape[-1])
    if reason is not None:
        raise RuntimeError(f"attention: {reason}")


def _check_saved(grad_output: Tensor, query: Tensor, value: Tensor, output: Tensor, logsumexp: Tensor) -> None:
    shape = (*query.shape[:-1], value.shape[-1])
    for name, tensor in (("grad_output", grad_output), ("output", output)):
        if tensor.shape != shape or tensor.dtype != query.dtype:
            raise RuntimeError(
                f"attention_backward: {name} must be {query.dtype} of shape {list(shape)}, got {tensor.dtype} "
                f"{list(tensor.shape)}"
            )
    if logsumexp.shape != shape[:-1] or logsumexp.dtype != torch.float32:
        raise RuntimeError(
            f"attention_backward: logsumexp must be float32 of shape {list(shape[:-1])}, got {logsumexp.dtype} "
            f"{list(logsumexp.shape)}"
        )


def _gradient_of(tensor: Tensor, wanted: bool) -> Tensor | None:
    """Rows of a gradient are contiguous; otherwise it lies in memory as its tensor does."""
    if not wanted:
        return None
    rows_are_contiguous = tensor.shape[-1] <= 1 or tensor.stride(-1) == 1
    return torch.empty_like(tensor) if rows_are_contiguous else tensor.new_empty(tensor.shape)


def _written(gradient: Tensor | None) -> Writable | None:
    return None if gradient is None else Writable(gradient)


def _view(written: Writable | None) -> Tensor | None:
    return None if written is None else written.view


implementations: dict[str, Callable[..., Any]] = {
    "attention_forward": attention_forward,
    "attention_backward": attention_backward,
}

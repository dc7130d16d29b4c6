"""Evaluation's BatchNorm folded into the convolution in front of it: one convolution with other weights.

    norm(conv(x)) = scale * (w * x + b - mean) + beta = (scale w) * x + (b - mean) scale + beta
    scale = gamma / sqrt(var + eps), one number a filter

Nothing of the model is written. What is folded is kept beside the plans of the module around both layers, made from
their tensors and valid while those are the same ones, unwritten. Whether it may be used is asked at every call.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .testing import DTYPES

_Sources = tuple[Any, ...]  # of tensors and None


@dataclass(frozen=True)
class _Fold:
    """A folded weight and bias, or None where the layers are more exact, and what they were made of."""

    sources: _Sources
    pins: _Sources  # aliases of their memory, which can therefore not come to hold another tensor
    versions: tuple[int, ...]
    eps: float
    folded: tuple[Tensor, Tensor] | None

    def holds(self, sources: _Sources, eps: float) -> bool:
        """Whether folding now would give this again."""
        if eps != self.eps:
            return False
        for tensor, source, pin, version in zip(sources, self.sources, self.pins, self.versions, strict=True):
            if tensor is not source:
                return False
            if tensor is not None and (tensor._version != version or not tensor.is_set_to(pin)):
                return False
        return True


class Folds:
    """What is folded of the pairs of layers inside one module."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.nn.Module, torch.nn.Module], _Fold] = {}

    def clear(self) -> None:
        """Forget all of it."""
        self._known.clear()

    def keep(self, modules: Collection[torch.nn.Module]) -> None:
        """Forget what is of others than these modules."""
        self._known = {pair: fold for pair, fold in self._known.items() if pair[0] in modules and pair[1] in modules}

    def of(self, conv: torch.nn.Module, norm: Any, input: Any) -> tuple[Tensor, Tensor] | None:
        """The weight and the bias with which conv alone gives norm(conv(input)), or None: both layers have to run.

        They have to in training, without running statistics, where a gradient of their parameters may be wanted, under
        autocast, forward-mode AD and dispatch modes, and where one of them would refuse the input.
        """
        if norm.training:
            self._known.pop((conv, norm), None)  # the statistics will be written, which no version counter sees
            return None
        if type(input) is not Tensor or input.dim() != 4 or _is_watched(input):
            return None
        if _is_managed(conv) or _is_managed(norm):
            return None
        sources = _sources(conv, norm)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in sources):
            return None
        fold = self._known.get((conv, norm))
        if fold is None or not fold.holds(sources, norm.eps):
            if not _can_be_folded(sources) or _is_captured(input):
                return None
            fold = self._known[conv, norm] = _make_fold(sources, norm.eps)
        if fold.folded is None or input.dtype is not fold.folded[0].dtype or input.device != fold.folded[0].device:
            return None
        return fold.folded


def _sources(conv: torch.nn.Module, norm: torch.nn.Module) -> _Sources:
    """Weight, bias, mean, var, gamma, beta and batches seen, as far as they are the layers' own parameters and buffers.

    num_batches_tracked is in no formula: training writes it where a version counter sees that, and the statistics where
    none does.
    """
    weights, affine, statistics = conv._parameters, norm._parameters, norm._buffers
    try:
        return (
            weights["weight"],
            weights["bias"],
            statistics["running_mean"],
            statistics["running_var"],
            affine["weight"],
            affine["bias"],
            statistics["num_batches_tracked"],
        )
    except KeyError:  # something else has taken the place of one
        return (None,) * 7


def _is_watched(input: Tensor) -> bool:
    """Whether this call is differentiated forwards, cast, or shown to somebody op by op."""
    return (
        forward_ad._current_level >= 0
        or torch.is_autocast_enabled(input.device.type)
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _is_managed(layer: Any) -> bool:
    """Whether somebody brings the parameters before each call, unseen by version counters: FSDP, whose mark this is."""
    return bool(layer._load_state_dict_post_hooks)


def _is_captured(input: Tensor) -> bool:
    """Whether a CUDA graph would own what is computed now."""
    return input.is_cuda and torch.cuda.is_current_stream_capturing()


def _can_be_folded(sources: _Sources) -> bool:
    """Whether there are tensors for the formula, and they fit together, of one dtype that we compute, on one device.

    Parameters have to be such: anything else is functional_call's, or computed by somebody for this one call. Tensors
    made in inference mode have no version counters.
    """
    weight, bias, mean, var, gamma, beta, batches = sources
    if weight is None or mean is None or var is None or any(t is not None and t.is_inference() for t in sources):
        return False
    if any(t is not None and type(t) is not torch.nn.Parameter for t in (weight, bias, gamma, beta)):
        return False
    if any(t is not None and type(t) is not Tensor for t in (mean, var, batches)):
        return False
    if weight.dtype not in DTYPES or weight.device.type not in ("cpu", "cuda") or weight.layout is not torch.strided:
        return False
    if weight.dim() != 4 or weight.numel() == 0:
        return False
    kind = (weight.dtype, weight.device, weight.layout, weight.shape[:1])
    vectors = (bias, mean, var, gamma, beta)
    return all(v is None or (v.dtype, v.device, v.layout, v.shape) == kind for v in vectors)


def _make_fold(sources: _Sources, eps: float) -> _Fold:
    with torch.inference_mode(False), torch.no_grad():
        pins = tuple(None if t is None else t.detach() for t in sources)
        versions = tuple(0 if t is None else t._version for t in sources)
        return _Fold(sources, pins, versions, eps, _folded(pins, eps))


def _folded(sources: _Sources, eps: float) -> tuple[Tensor, Tensor] | None:
    """The folded weight and bias, each rounded once; None where their type can not hold them to its precision."""
    dtype = sources[0].dtype
    wide: _Sources = tuple(None if t is None else t.double() for t in sources[:-1])
    weight, bias, mean, var, gamma, beta = wide
    scale = (var + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma
    shift = (-mean if bias is None else bias - mean) * scale
    if beta is not None:
        shift = shift + beta
    exact = weight * scale[:, None, None, None]
    folded, folded_bias = exact.to(dtype), shift.to(dtype)
    error = (folded.double() - exact).abs().flatten(1).amax(1)
    bound = exact.abs().flatten(1).amax(1) * torch.finfo(dtype).eps
    # False for NaN, infinities, and a filter that a small scale makes subnormal. Reading it also waits for the device:
    # the next call may come on another stream.
    return (folded, folded_bias) if (error <= bound).all() & folded_bias.isfinite().all() else None

"""LayerNorm and BatchNorm layers."""

from typing import Any

import torch
from torch import Tensor

from .. import functional
from ._activation import checked_activation
from ._tracing import DropIn, leaf_when_traced


class LayerNorm(DropIn, torch.nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` on tilewright's kernels; constructor, parameters and state_dict are torch's.

    Shape:
        [*, normalized_shape] -> the same; float32, float64, bfloat16 or float16 (other tensors go to native).

    Raises:
        RuntimeError: input does not end in normalized_shape.

    Example:
        >>> y = tilewright.nn.LayerNorm(768)(torch.randn(4, 16, 768))
    """

    @leaf_when_traced
    def forward(self, input: Tensor) -> Tensor:
        """Normalise over the trailing dimensions."""
        return functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class DropoutAddLayerNorm(torch.nn.LayerNorm):
    """LayerNorm(residual + dropout(input)) in one pass: the parameters of :class:`torch.nn.LayerNorm`.

    Args:
        normalized_shape ... dtype: as torch.nn.LayerNorm's.
        p: dropout probability of the input; the dropout works in training only.
        prenorm: return (normalised, residual + dropout(input)), which a pre-norm block passes on as its residual.

    Shape:
        input and residual [*, normalized_shape] -> the same (twice where prenorm).

    Raises:
        ValueError: p lies outside [0, 1].
        RuntimeError: input does not end in normalized_shape, or residual has another shape.

    Example:
        >>> x = torch.randn(4, 16, 768)
        >>> y, total = tilewright.nn.DropoutAddLayerNorm(768, p=0.1, prenorm=True)(x, x)
    """

    def __init__(self, *args: Any, p: float = 0.0, prenorm: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"{type(self).__name__}: p must lie between 0 and 1, got {p}")
        self.p = p
        self.prenorm = prenorm

    @leaf_when_traced
    def forward(  # type: ignore[override]
        self, input: Tensor, residual: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Drop, add, normalise; also return the sum where prenorm."""
        return functional.dropout_add_layer_norm(
            input,
            residual,
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            self.p,
            self.training,
            prenorm=self.prenorm,
        )

    def extra_repr(self) -> str:
        """What repr shows: torch's arguments and the fusion's."""
        return f"{super().extra_repr()}, p={self.p}, prenorm={self.prenorm}"


def _running_averages(layer: torch.nn.modules.batchnorm._BatchNorm) -> tuple[Tensor | None, Tensor | None, bool, float]:
    """running_mean, running_var, training and momentum of this call, counting the batch, by the rules of torch's layer.

    momentum None means the cumulative average, whose factor is 1 / batches seen. Without tracking, running statistics
    are neither read nor written in training; without running statistics, eval normalises by the batch's own.
    """
    momentum = 0.0 if layer.momentum is None else layer.momentum
    if layer.training and layer.track_running_stats and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:
            momentum = 1.0 / float(layer.num_batches_tracked)
    by_batch = layer.training or (layer.running_mean is None and layer.running_var is None)
    if layer.training and not layer.track_running_stats:
        return None, None, by_batch, momentum
    return layer.running_mean, layer.running_var, by_batch, momentum


def _batch_norm(layer: torch.nn.modules.batchnorm._BatchNorm, input: Tensor) -> Tensor:
    layer._check_input_dim(input)
    running_mean, running_var, by_batch, momentum = _running_averages(layer)
    return functional.batch_norm(
        input, running_mean, running_var, layer.weight, layer.bias, by_batch, momentum, layer.eps
    )


def batch_norm_act(
    layer: torch.nn.modules.batchnorm._BatchNorm, input: Tensor, activation: str, residual: Tensor | None
) -> Tensor:
    """activation(layer(input) + residual) in one op, by the settings and statistics that layer has now."""
    layer._check_input_dim(input)
    running_mean, running_var, by_batch, momentum = _running_averages(layer)
    return functional.batch_norm_act(
        input,
        running_mean,
        running_var,
        layer.weight,
        layer.bias,
        by_batch,
        momentum,
        layer.eps,
        activation=activation,
        residual=residual,
    )


class BatchNorm1d(DropIn, torch.nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` on tilewright's kernels; constructor, buffers and state_dict are torch's.

    Shape:
        [N, C] or [N, C, L] -> the same; float32, float64, bfloat16 or float16 (other tensors go to native).

    Raises:
        ValueError: wrong rank, or one value per channel in training.
        RuntimeError: wrong number of channels.

    Example:
        >>> y = tilewright.nn.BatchNorm1d(64)(torch.randn(8, 64))
    """

    @leaf_when_traced
    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel; update the running statistics in training."""
        return _batch_norm(self, input)


class BatchNorm2d(DropIn, torch.nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` on tilewright's kernels; constructor, buffers and state_dict are torch's.

    Shape:
        [N, C, H, W] -> the same; float32, float64, bfloat16 or float16 (other tensors go to native);
        channels_last in, channels_last out.

    Raises:
        ValueError: wrong rank, or one value per channel in training.
        RuntimeError: wrong number of channels.

    Example:
        >>> y = tilewright.nn.BatchNorm2d(64)(torch.randn(8, 64, 56, 56))
    """

    @leaf_when_traced
    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel; update the running statistics in training."""
        return _batch_norm(self, input)


class BatchNorm3d(DropIn, torch.nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d` on tilewright's kernels; constructor, buffers and state_dict are torch's.

    Shape:
        [N, C, D, H, W] -> the same; float32, float64, bfloat16 or float16 (other tensors go to native).

    Raises:
        ValueError: wrong rank, or one value per channel in training.
        RuntimeError: wrong number of channels.

    Example:
        >>> y = tilewright.nn.BatchNorm3d(64)(torch.randn(2, 64, 4, 14, 14))
    """

    @leaf_when_traced
    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel; update the running statistics in training."""
        return _batch_norm(self, input)


class BatchNormAct2d(torch.nn.BatchNorm2d):
    """activation(batch_norm(x) + residual) in one pass: the parameters and buffers of :class:`torch.nn.BatchNorm2d`.

    Args:
        num_features ... dtype: as torch.nn.BatchNorm2d's.
        activation: "none", "relu", "relu6", "gelu" (exact, by erf), "gelu_tanh" or "silu".

    Shape:
        input [N, C, H, W] -> the same; residual, if given, of the same shape.

    Raises:
        ValueError: activation is not one of the above, wrong rank, or one value per channel in training.
        RuntimeError: wrong number of channels, or residual has another shape.

    Example:
        >>> x = torch.randn(8, 64, 56, 56)
        >>> y = tilewright.nn.BatchNormAct2d(64, activation="relu")(x, residual=x)
    """

    def __init__(self, *args: Any, activation: str = "relu", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = checked_activation(type(self).__name__, activation)

    @leaf_when_traced
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise each channel, add the residual if there is one, apply the activation."""
        return batch_norm_act(self, input, self.activation, residual)

    def extra_repr(self) -> str:
        """What repr shows: torch's arguments and the activation."""
        return f"{super().extra_repr()}, activation={self.activation}"

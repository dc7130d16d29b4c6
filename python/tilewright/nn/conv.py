"""Two-dimensional convolution layers."""

from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..functional.conv2d import resolve_padding
from ._activation import checked_activation
from ._tracing import DropIn, leaf_when_traced


def _padded(layer: torch.nn.Conv2d, input: Tensor) -> tuple[Tensor, Any]:
    """Input and the padding left for the convolution: modes other than zeros are padded beforehand, as torch does."""
    if layer.padding_mode == "zeros":
        return input, layer.padding
    return torch.nn.functional.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0, 0)


def padded(layer: torch.nn.Conv2d, input: Tensor, weight: Tensor) -> tuple[Tensor, Any]:
    """Input and the padding left for the convolution, in numbers."""
    input, padding = _padded(layer, input)
    if isinstance(padding, str):
        return resolve_padding(input, weight, layer.stride, padding, layer.dilation)
    return input, padding


class Conv2d(DropIn, torch.nn.Conv2d):
    """:class:`torch.nn.Conv2d` on tilewright's kernels, for any stride, padding, padding_mode, dilation and groups.

    Constructor, parameters and state_dict are torch.nn.Conv2d's.

    Shape:
        input [N, in_channels, H, W] or [in_channels, H, W] -> [N, out_channels, Ho, Wo] or [out_channels, Ho, Wo];
        float32, float64, bfloat16 or float16 (other tensors go to native); channels_last in, channels_last out.

    Raises:
        RuntimeError: wrong rank, channels or dtype, or a kernel larger than the padded input.

    Example:
        >>> tilewright.nn.Conv2d(3, 64, 7, stride=2, padding=3)(torch.randn(8, 3, 224, 224)).shape
        torch.Size([8, 64, 112, 112])
    """

    @leaf_when_traced
    def forward(self, input: Tensor) -> Tensor:
        """Convolve: [N, in_channels, H, W] -> [N, out_channels, Ho, Wo]."""
        return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = _padded(self, input)
        return functional.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class ConvAct2d(torch.nn.Conv2d):
    """activation(conv2d(x) + residual) in one pass: the parameters of :class:`torch.nn.Conv2d`, the rest fused.

    Args:
        in_channels ... dtype: as torch.nn.Conv2d's.
        activation: "none", "relu", "relu6", "gelu" (exact, by erf), "gelu_tanh" or "silu".

    Shape:
        input as :class:`Conv2d`'s; residual, if given, of the output's shape or broadcasting to it.

    Raises:
        ValueError: activation is not one of the above.
        RuntimeError: wrong rank, channels or dtype, or residual does not fit the output.

    Example:
        >>> tilewright.nn.ConvAct2d(3, 64, 3, padding=1, activation="relu")(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 64, 32, 32])
    """

    def __init__(self, *args: Any, activation: str = "relu", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = checked_activation(type(self).__name__, activation)

    @leaf_when_traced
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve, add the residual if there is one, apply the activation."""
        input, padding = _padded(self, input)
        return functional.conv2d_act(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
            residual=residual,
        )

    def extra_repr(self) -> str:
        """What repr shows: torch's arguments and the activation."""
        return f"{super().extra_repr()}, activation={self.activation}"

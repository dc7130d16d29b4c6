"""Linear layers."""

from typing import Any

import torch
from torch import Tensor

from .. import functional
from ._activation import checked_activation
from ._tracing import DropIn, leaf_when_traced


class Linear(DropIn, torch.nn.Linear):
    """:class:`torch.nn.Linear` on tilewright's matmul: y = x @ weight.T + bias.

    Constructor, parameters and state_dict are torch.nn.Linear's.

    Shape:
        input [*, in_features] -> [*, out_features]; float32, float64, bfloat16 or float16 (other tensors go to native).

    Raises:
        RuntimeError: input's last size is not in_features, or its dtype is not weight's.

    Example:
        >>> tilewright.nn.Linear(768, 3072)(torch.randn(4, 16, 768)).shape
        torch.Size([4, 16, 3072])
    """

    @leaf_when_traced
    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer: [*, in_features] -> [*, out_features]."""
        return functional.linear(input, self.weight, self.bias)


class LinearAct(torch.nn.Linear):
    """activation(x @ weight.T + bias) in one pass: the parameters of :class:`torch.nn.Linear`, the activation fused.

    Args:
        in_features, out_features, bias, device, dtype: as torch.nn.Linear's.
        activation: "none", "relu", "relu6", "gelu" (exact, by erf), "gelu_tanh" or "silu".

    Shape:
        input [*, in_features] -> [*, out_features]; float32, float64, bfloat16 or float16 (other tensors go to native).

    Raises:
        ValueError: activation is not one of the above.
        RuntimeError: input's last size is not in_features, or its dtype is not weight's.

    Example:
        >>> tilewright.nn.LinearAct(768, 3072, activation="gelu")(torch.randn(4, 768)).shape
        torch.Size([4, 3072])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str = "gelu",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = checked_activation(type(self).__name__, activation)

    @leaf_when_traced
    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer and its activation: [*, in_features] -> [*, out_features]."""
        return functional.linear_act(input, self.weight, self.bias, activation=self.activation)

    def extra_repr(self) -> str:
        """What repr shows: torch's arguments and the activation."""
        return f"{super().extra_repr()}, activation={self.activation}"

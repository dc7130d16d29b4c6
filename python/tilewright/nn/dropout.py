"""Dropout layers."""

import torch
from torch import Tensor

from .. import functional
from ._tracing import DropIn, leaf_when_traced


class Dropout(DropIn, torch.nn.Dropout):
    """:class:`torch.nn.Dropout` on tilewright's counter-based generator, seeded from torch's default one.

    torch.manual_seed rules which elements fall, for any number of threads; the pattern is not native's for one seed.

    Args:
        p: probability of an element to be zeroed; the others are scaled by 1 / (1 - p).
        inplace: write the result into the input.

    Shape:
        any -> the same; float32, float64, bfloat16 or float16 (other tensors go to native).

    Raises:
        ValueError: p lies outside [0, 1].

    Example:
        >>> y = tilewright.nn.Dropout(0.1)(torch.randn(4, 16, 768))
    """

    @leaf_when_traced
    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training; return the input in eval."""
        return functional.dropout(input, self.p, self.training, self.inplace)


class DropoutAdd(torch.nn.Dropout):
    """residual + dropout(input + bias) in one pass, the tail of every residual branch.

    Args:
        p: probability of an element to be zeroed; the others are scaled by 1 / (1 - p).
        inplace: must stay False: input and residual are both read.

    Shape:
        input and residual of one shape -> the same; bias, if given, of the last dimension's size.

    Raises:
        ValueError: p lies outside [0, 1], or inplace is True.
        RuntimeError: shapes or dtypes of input, residual and bias do not fit.

    Example:
        >>> x = torch.randn(4, 16, 768)
        >>> y = tilewright.nn.DropoutAdd(0.1)(x, x)
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__(p, inplace)
        if inplace:
            raise ValueError("DropoutAdd: inplace=True is not supported, expected False")

    @leaf_when_traced
    def forward(  # type: ignore[override]
        self, input: Tensor, residual: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Return residual + dropout(input + bias); without dropout in eval."""
        return functional.dropout_add(input, residual, self.p, self.training, bias=bias)

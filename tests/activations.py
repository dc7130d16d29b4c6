"""The activations by name, in native's functions."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}

# Whose gradients jump: where a rounding decides, they belong to the output that was given out. Where does it pass?
PASSES: dict[str, Callable[[Tensor], Tensor]] = {"relu": lambda y: y > 0, "relu6": lambda y: (y > 0) & (y < 6)}


def reach(activation: str) -> float:
    """A factor by which normal values meet all of an activation: few are beyond relu6's 6."""
    return 4.0 if activation == "relu6" else 1.0

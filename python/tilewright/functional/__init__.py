"""torch.nn.functional's names on tilewright's kernels: same arguments, same results, same errors."""

from .conv2d import conv2d, conv2d_act
from .layer_norm import layer_norm

__all__ = ["conv2d", "conv2d_act", "layer_norm"]

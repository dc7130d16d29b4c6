"""torch.nn.functional's names on tilewright's kernels: same arguments, same results, same errors."""

from .attention import scaled_dot_product_attention
from .batch_norm import batch_norm, batch_norm_act
from .conv2d import conv2d, conv2d_act
from .dropout import dropout
from .dropout_add import dropout_add
from .dropout_add_layer_norm import dropout_add_layer_norm
from .layer_norm import layer_norm
from .linear import linear, linear_act
from .masked_scale import masked_scale
from .matmul import baddbmm, bmm, matmul

__all__ = [
    "baddbmm",
    "batch_norm",
    "batch_norm_act",
    "bmm",
    "conv2d",
    "conv2d_act",
    "dropout",
    "dropout_add",
    "dropout_add_layer_norm",
    "layer_norm",
    "linear",
    "linear_act",
    "masked_scale",
    "matmul",
    "scaled_dot_product_attention",
]

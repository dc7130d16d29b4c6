"""Fake kernels: what each op returns without computing it (sizes may be symbolic; strides are exact)."""

from . import (
    attention,
    batch_norm,
    conv2d,
    depthwise,
    dropout,
    dropout_add,
    dropout_add_layer_norm,
    layer_norm,
    linear,
    masked_scale,
    matmul,
)

__all__ = [
    "attention",
    "batch_norm",
    "conv2d",
    "depthwise",
    "dropout",
    "dropout_add",
    "dropout_add_layer_norm",
    "layer_norm",
    "linear",
    "masked_scale",
    "matmul",
]

"""Fake kernels: what each op returns without computing it (sizes may be symbolic; strides are exact)."""

from . import attention, dropout, layer_norm

__all__ = ["attention", "dropout", "layer_norm"]

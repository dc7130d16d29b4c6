"""Fake kernels: what each op returns without computing it (sizes may be symbolic; strides are exact)."""

from . import dropout, layer_norm

__all__ = ["dropout", "layer_norm"]

"""torch.nn's layers on tilewright's kernels: subclasses with the same constructor and state_dict; only forward differs.

Layers with a fused form (LinearAct, ConvAct2d, BatchNormAct2d, DropoutAdd, DropoutAddLayerNorm) subclass the torch.nn
layer whose parameters they hold and take the fusion's options as keyword arguments. State dicts load both ways.
"""

from .attention import MultiheadAttention
from .conv import Conv2d, ConvAct2d
from .dropout import Dropout, DropoutAdd
from .linear import Linear, LinearAct
from .normalization import BatchNorm1d, BatchNorm2d, BatchNorm3d, BatchNormAct2d, DropoutAddLayerNorm, LayerNorm
from .transformer import TransformerEncoderLayer

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct2d",
    "Conv2d",
    "ConvAct2d",
    "Dropout",
    "DropoutAdd",
    "DropoutAddLayerNorm",
    "LayerNorm",
    "Linear",
    "LinearAct",
    "MultiheadAttention",
    "TransformerEncoderLayer",
]

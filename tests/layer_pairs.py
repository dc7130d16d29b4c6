"""One layer of torch.nn and ours with the same parameters."""

import torch
from torch import nn

import tilewright.nn as TN


def pair(name: str, arguments: tuple, options: dict, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The native layer with random parameters, and ours with the same state."""
    native = getattr(nn, name)(*arguments, **options, dtype=dtype) if name != "Dropout" else nn.Dropout(*arguments)
    ours = getattr(TN, name)(*arguments, **options, dtype=dtype) if name != "Dropout" else TN.Dropout(*arguments)
    for parameter in native.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(native.state_dict())
    return native, ours

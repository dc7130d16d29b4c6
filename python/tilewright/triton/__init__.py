"""The Triton kernels: tensor-core tiles for matmul, linear, conv2d and attention.

They fill the CUDA slot of the ops that the C++ library defines. Importing this package imports Triton; tilewright does
so when the first CUDA tensor arrives (see :mod:`tilewright._backends`), never before.

A module per op family holds, in this order: the kernels; the table of configurations, chosen by pure functions of
shape, dtype and architecture; the op's implementation, which turns Tensors into one or more launches; and
``implementations``, the ops it serves. Every launch goes through :func:`tilewright.triton.variants.launch`, and every
variant that can be launched is listed by the module's ``variants(architecture)``, which the tests compile ahead of
time.
"""

from collections.abc import Collection, Sequence

import torch

FAMILIES = ("attention", "conv2d", "linear", "matmul")

# Sums are in float32; float64 is left to native, whose float64 tensor-core products leave nothing to win.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def register(
    dispatch_key: str = "CUDA", families: Sequence[str] = FAMILIES, without: Collection[str] = ()
) -> torch.library.Library:
    """Fill the slot of the ops; the registration lasts as long as the returned library lives.

    Args:
        dispatch_key: ``"CUDA"``, or ``"CPU"`` in Triton's interpreter, where tests run the same code on CPU tensors.
        families: which of FAMILIES.
        without: ops of theirs to leave as they are.
    """
    from importlib import import_module

    library = torch.library.Library("tilewright", "IMPL")
    for family in families:
        for name, implementation in import_module(f"{__name__}.{family}").implementations.items():
            if name not in without:
                library.impl(name, implementation, dispatch_key, allow_override=True)
    return library

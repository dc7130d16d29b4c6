"""The CUDA C++ kernels on the CPU: `with emulated_cuda(): ...` puts them into the CPU slot of torch.ops.tilewright."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import tilewright  # noqa: F401  the schemas must be there before kernels for them are

from . import build


@dataclass(frozen=True)
class Emulation:
    """What ran so far in this process."""

    kernels: ctypes.CDLL

    @property
    def launches(self) -> int:
        return self.kernels.simt_launches()

    @property
    def kernels_launched(self) -> int:
        return self.kernels.simt_kernels()


@cache
def _loaded(variant: str) -> tuple[ctypes.CDLL, ctypes.CDLL]:
    path = build.build("bindings", variant)
    kernels = ctypes.CDLL(str(path.parent / "kernels.so"), mode=ctypes.RTLD_GLOBAL)
    for count in (kernels.simt_launches, kernels.simt_kernels):
        count.restype = ctypes.c_uint64
    return kernels, ctypes.CDLL(str(path))


@contextmanager
def emulated_cuda(variant: str = "plain") -> Iterator[Emulation]:
    kernels, bindings = _loaded(variant)
    bindings.tilewright_emulation_enable()
    try:
        yield Emulation(kernels)
    finally:
        bindings.tilewright_emulation_disable()

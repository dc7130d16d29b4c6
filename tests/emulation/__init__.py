"""The CUDA C++ kernels on the CPU: `with emulated_cuda(): ...` puts them into the CPU slot of torch.ops.tilewright."""

import ctypes
import os
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
    def kernels_launched(self) -> set[str]:
        """Different kernels, by their place in the library: the same in every process."""
        places = (ctypes.c_uint64 * self.kernels.simt_kernels(None, 0))()
        self.kernels.simt_kernels(places, len(places))
        return {hex(place) for place in places}


@cache
def _loaded(variant: str) -> tuple[ctypes.CDLL, ctypes.CDLL]:
    kernels_path, bindings_path = build.build("kernels", variant), build.build("bindings")
    kernels = ctypes.CDLL(str(kernels_path), mode=ctypes.RTLD_GLOBAL)  # whose symbols the bindings want
    kernels.simt_launches.restype = ctypes.c_uint64
    kernels.simt_kernels.restype = ctypes.c_size_t
    kernels.simt_kernels.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return kernels, ctypes.CDLL(str(bindings_path))


@contextmanager
def emulated_cuda(variant: str | None = None) -> Iterator[Emulation]:
    """variant: "plain" or "sanitized", as the environment's TILEWRIGHT_EMULATION says where none is given."""
    kernels, bindings = _loaded(variant or os.environ.get("TILEWRIGHT_EMULATION", "plain"))
    bindings.tilewright_emulation_enable()
    try:
        yield Emulation(kernels)
    finally:
        bindings.tilewright_emulation_disable()

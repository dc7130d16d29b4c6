"""The two limits of a machine, measured in the run whose rows are held against them.

Multiply-add peak: register-only chains of our own (csrc/cpu/kernels/roofline.h), for bfloat16 the dot-product
instruction or the tile unit where the ISA in use has one. Copy bandwidth: ``a.copy_(b)`` at the case's own size, so
that a case in cache is held against the cache.
"""

import time

import torch
from torch import Tensor

import tilewright

from .cases import Work

_MIN_SECONDS = 0.03
_MAX_BYTES = 1 << 28  # far beyond every cache: a larger copy is as fast


class Roofline:
    """Peaks and copy bandwidths, measured once per dtype and size."""

    def __init__(self) -> None:
        self._peaks: dict[torch.dtype, float] = {}
        self._copies: dict[int, float] = {}

    def peak_gflops(self, dtype: torch.dtype) -> float:
        """GFLOP/s of multiply-adds on the threads and the ISA in use."""
        if dtype not in self._peaks:
            name = str(dtype).removeprefix("torch.")
            self._peaks[dtype] = tilewright._C.measure_fma_peak(name)
        return self._peaks[dtype]

    def copy_gbs(self, total_bytes: float) -> float:
        """GB/s (read + written) of a copy that moves about total_bytes in all."""
        # Two significant bits: near sizes share a measurement.
        size = min(max(1024, int(total_bytes) // 2), _MAX_BYTES)
        step = 1 << max(0, size.bit_length() - 2)
        size = -(-size // step) * step
        if size not in self._copies:
            self._copies[size] = _measure_copy(size)
        return self._copies[size]

    def copy_seconds(self, x: Tensor) -> float:
        """The time of a copy of a tensor of this size."""
        return 2 * x.nbytes / (self.copy_gbs(2 * x.nbytes) * 1e9)

    def limit_seconds(self, work: Work, dtype: torch.dtype) -> tuple[float, str]:
        """The least time the work can take, and what sets it: 'compute' or 'memory'."""
        compute = work.flops / (self.peak_gflops(dtype) * 1e9) if work.flops else 0.0
        memory = work.bytes / (self.copy_gbs(work.bytes) * 1e9)
        return (compute, "compute") if compute > memory else (memory, "memory")


def _measure_copy(size: int) -> float:
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    inner = max(1, int(2e5 // size))  # a sample of some microseconds at least
    best, end = float("inf"), time.perf_counter() + _MIN_SECONDS
    samples = 0
    while samples < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(inner):
            target.copy_(source)
        best = min(best, (time.perf_counter() - start) / inner)
        samples += 1
    return 2 * size / best * 1e-9

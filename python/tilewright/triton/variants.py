"""One compiled kernel is a Variant; launching and ahead-of-time compilation both start from it.

Kernels follow three rules, so that the variants a program can reach are the ones listed and no others:

* every integer argument is annotated (``tl.int32`` for sizes below 2^31, ``tl.int64`` for strides and offsets) and
  named in ``do_not_specialize``; every pointer is named in ``do_not_specialize_on_alignment``. What Triton would
  specialise on (divisibility by 16, equality with 1) enters as a ``tl.constexpr`` that the configuration chooses;
* what leaves the main loop as it is (bias or not, which activation, causal or not) is a runtime scalar, not a constant;
* a descriptor's block shape is a function of the constants.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Architectures with a table of their own. 86 stands for every part with 99 KiB of shared memory a block (8.6, 8.9,
# 12.x), whatever its generation.
ARCHITECTURES = (80, 86, 90, 100)

# Bytes of shared memory a block may ask for (CUDA C++ Programming Guide, compute capabilities).
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}

_TYPE_NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.bool: "u1",
}


def type_name(dtype: torch.dtype) -> str:
    """Triton's name of an element type: ``bf16`` for torch.bfloat16."""
    return _TYPE_NAMES[dtype]


@dataclass(frozen=True)
class Variant:
    """A kernel with everything its compilation depends on except the architecture.

    Attributes:
        kernel: the ``@triton.jit`` function.
        signature: (argument, type) of every argument that is no constant, in order: ``"i32"``, ``"*bf16"``,
            ``"tensordesc<bf16[128, 64]>"``.
        constants: (argument, value) of every ``tl.constexpr``.
        num_warps, num_stages: as Triton takes them.
        may_fill_registers: ptxas is told that a thread may have 255 registers. Left to itself it spills a few of them
            where it then fits more blocks.
        loaded: by device index, what :func:`launch` has compiled and loaded there. A kernel's users keep one Variant
            for each, so that it is found again.
    """

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int
    may_fill_registers: bool = False
    loaded: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        constants = ",".join(f"{name}={value}" for name, value in self.constants)
        types = ",".join(dict.fromkeys(kind for _, kind in self.signature if kind.startswith(("*", "tensordesc"))))
        return f"{self.kernel.__name__}[{constants}|{types}|warps={self.num_warps},stages={self.num_stages}]"

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told beside constants and types."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return options | {"maxnreg": 255} if self.may_fill_registers else options

    def compile(self, architecture: int) -> Any:
        """Ahead of time, without a GPU: the compiled kernel with ``asm["ptx"]``, ``asm["cubin"]`` and ``metadata``."""
        types = dict(self.signature) | {name: "constexpr" for name, _ in self.constants}
        ordered = {name: types[name] for name in self.kernel.arg_names}
        source = ASTSource(self.kernel, ordered, dict(self.constants), {})
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=self.options)


# The table that Triton's interpreter uses; tests set it to reach those of other architectures.
INTERPRETED_ARCHITECTURE = 80

_observers: list[Callable[[Variant], None]] = []


def launch(variant: Variant, grid: Sequence[int], arguments: Mapping[str, Any]) -> None:
    """Run a variant on the current stream of its tensors' device.

    Args:
        grid: programs in up to three dimensions; nothing happens where there are none.
        arguments: every argument of the variant's signature.
    """
    for observe in _observers:
        observe(variant)
    if 0 in grid:
        return
    tensor = next(value for value in arguments.values() if isinstance(value, torch.Tensor))
    # Triton launches on the current device.
    if tensor.is_cuda and tensor.get_device() != torch.cuda.current_device():
        with torch.cuda.device(tensor.device):
            _launch_here(variant, grid, arguments, tensor.get_device())
    else:
        _launch_here(variant, grid, arguments, tensor.get_device())


def _launch_here(variant: Variant, grid: Sequence[int], arguments: Mapping[str, Any], device: int) -> None:
    """On the current device, whose index that is. Triton's way from arguments to a compiled kernel looks at each of
    them and costs more than the launch; as nothing but the variant decides, it is taken once.
    """
    loaded = variant.loaded.get(device)
    if loaded is not None:
        values = {**arguments, **dict(variant.constants)}
        loaded[(*grid, 1, 1)[:3]](*[values[name] for name in variant.kernel.arg_names])
        return
    loaded = variant.kernel[tuple(grid)](**arguments, **dict(variant.constants), **variant.options)
    if loaded is not None:  # the interpreter's
        variant.loaded[device] = loaded


@contextmanager
def observed() -> Iterator[list[Variant]]:
    """Collect the variants launched in the body, so that tests can compare them with those listed."""
    seen: list[Variant] = []
    observe = seen.append
    _observers.append(observe)
    try:
        yield seen
    finally:
        # By identity: bound methods of equal lists are equal.
        _observers[:] = [other for other in _observers if other is not observe]


def architecture_of(device: torch.device) -> int:
    """The table a device uses: one of ARCHITECTURES."""
    return _table_of(device) if device.type == "cuda" else INTERPRETED_ARCHITECTURE


@cache
def _table_of(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) == (8, 0) or (major, minor) == (8, 7):
        return 80
    if major == 9:
        return 90
    if major in (10, 11):
        return 100
    return 86

"""What a bench file is made of: cases, and the problem that a case builds when its turn comes.

A bench file bench_<op>.py offers ``CASES`` and ``SWEEP`` (lists of :class:`Case`), ``GPU`` (those of a GPU: larger, in
bfloat16) and ``MODEL`` (one paragraph: which bytes and which floating-point operations it counts). Tensors are made on
torch's default device. Dimension letters are the library's: N C H W, M N K, B H S D,
rows cols.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

FORWARD, TRAIN = "fwd", "fwd+bwd"
STEP = "step"  # of training a whole model: forward, loss, backward, and the optimizer's update, all inside the call
BOTH = (FORWARD, TRAIN)

Function = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Work:
    """What one call must do at least: floating-point operations, and bytes to and from memory."""

    flops: float
    bytes: float


@dataclass
class Problem:
    """One case with its tensors.

    native and ours take ``inputs`` in order. ``differentiable`` are the positions that get gradients (None: every
    floating one). ``mutable`` are the positions that a call overwrites (running statistics): each side gets its own
    copy. Random functions set ``recover`` (the keep-mask of one call of ours, from inputs and a function that repeats
    the call with the same seed) and ``masked`` (native operations for a given mask): the gate compares under the same
    mask. Calls that change what they are made of, or can not run in float64, bring their own gate, ``verify``: empty,
    or why they get no time.
    """

    inputs: list[Tensor]
    native: Function
    ours: Function
    work: dict[str, Work]
    differentiable: tuple[int, ...] | None = None
    mutable: tuple[int, ...] = ()
    masked: Function | None = None
    recover: Callable[..., Tensor] | None = None
    verify: Callable[[], str] | None = None
    terms: int = 1  # how many products the longest sum of a result or gradient has; the gate asks in float64

    def wanted(self) -> tuple[int, ...]:
        """Positions of the inputs that get gradients."""
        if self.differentiable is not None:
            return self.differentiable
        return tuple(i for i, t in enumerate(self.inputs) if t.is_floating_point() and i not in self.mutable)


@dataclass(frozen=True)
class Case:
    """A row (or two: one per direction) of the report."""

    op: str  # the bench file and the result file
    form: str  # the function: layer_norm, batch_norm_act, ...
    shape: str
    build: Callable[[], Problem] = field(repr=False, compare=False)
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    directions: tuple[str, ...] = BOTH
    quick: bool = False
    size: float = 0  # what a sweep plots against; 0 where the case is none of a sweep
    axis: str = ""  # what `size` counts; one form and layout over one axis is one panel of the picture
    kind: str = ""  # a class of cases within the form, and
    network: str = ""  # the network that has such a layer: each has a line of its own in the report
    accuracy: float = 2.0  # how many times native's error is allowed (Winograd: 8, and 1e-5 relative in norm)
    # What the gate takes instead of the case itself.
    gate_on: Callable[[], Problem] | None = field(default=None, repr=False, compare=False)

    @property
    def dtype_name(self) -> str:
        """float32 -> fp32, bfloat16 -> bf16."""
        return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}[self.dtype]

    def label(self, direction: str) -> str:
        """One readable name, unique within the suite."""
        return f"{self.form} {self.shape} {self.layout} {self.dtype_name} {direction}"


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers that do not depend on what ran before."""
    device = torch.get_default_device()
    generator = torch.Generator(device).manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, device=device).mul_(scale).to(dtype)


def element_size(dtype: torch.dtype) -> int:
    """Bytes of one element."""
    return torch.empty((), dtype=dtype).element_size()


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The same values in the named memory layout."""
    if layout in ("NHWC", "NDHWC"):
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    if layout == "transposed":
        return x.transpose(-2, -1).contiguous().transpose(-2, -1)
    return x.contiguous()


def dims(shape: str) -> list[int]:
    """'8x64x56' -> [8, 64, 56]."""
    return [int(part) for part in shape.split("x")]


BYTES = "bytes of an operand"
SWEEP_BYTES = tuple(1 << k for k in range(10, 31, 2))  # 1 KB ... 1 GB
# The gate's float64 copies of a larger operand and of its results do not fit memory beside each other.
_GATE_BYTES = 1 << 26


def sweep(
    make: Callable[..., Case], shapes: Sequence[str], axis: str = BYTES, sizes: Sequence[float] = ()
) -> list[Case]:
    """float32 cases over size, by default over the bytes of an operand, smallest first.

    A case above 64 MB is gated on the largest shape that is not.
    """
    nbytes = [4.0 * math.prod(dims(shape)) for shape in shapes]
    gated = max((n for n in nbytes if n <= _GATE_BYTES), default=0)
    cases = []
    for shape, n, size in zip(shapes, nbytes, sizes or nbytes, strict=True):
        gate_on = make(shapes[nbytes.index(gated)]).build if n > _GATE_BYTES else None
        cases.append(make(shape, size=size, axis=axis, gate_on=gate_on))
    return cases

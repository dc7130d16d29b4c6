"""conv2d over the layers of networks (conv2d_networks.py), sizes that fit no tile, other types, and the fused form."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF

from .cases import FORWARD, TRAIN, Case, Problem, Work, dims, element_size, in_layout, randn
from .conv2d_networks import LAYERS

MODEL = (
    "Flops: a forward is 2 N Ho Wo Co (Ci/groups) Kh Kw whatever the algorithm (Winograd does fewer, so it may pass "
    "the peak); the weight gradient is as much again, the input gradient too (a network's first layer has none). "
    "Bytes: x, weight and y once forward; backward dy and x once for each gradient, and the gradients."
)


_NATIVE: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu}


def _kind(batch: int, channels: int, kernel: int, stride: int, dilation: int, groups: int, first: bool) -> str:
    """The class of a layer: what decides which kernels serve it and what limits them; one image apart from several."""
    if first:
        kind = "stem"
    elif groups > 1:
        kind = "depthwise" if groups == channels else "grouped"
    elif dilation > 1:
        kind = "dilated"
    elif stride > 1:
        kind = "strided"
    else:
        kind = f"{kernel}x{kernel}" if kernel <= 3 else "5x5 and larger"
    return f"{kind} (one image)" if batch == 1 else kind


def _case(
    shape: str,
    out: int,
    kernel: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "NCHW",
    *,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
    groups: int = 1,
    act: str = "",
    residual: bool = False,
    first: bool = False,
    kind: str = "",
    **options: Any,
) -> Case:
    """shape: NxCxHxW or NxCxH for squares. first: a network's first layer, whose input needs no gradient.

    kind: the class of the case where that is not the layer's own.
    """
    sizes = dims(shape)
    n, channels, height, width = (*sizes, sizes[-1])[:4]
    pad = dilation * (kernel // 2) if padding is None else padding

    def native(x: Tensor, weight: Tensor, bias: Tensor, *other: Tensor) -> Tensor:
        y = F.conv2d(x, weight, bias, stride, pad, dilation, groups)
        for added in other:
            y = y + added
        return _NATIVE[act](y) if act else y

    def ours(x: Tensor, weight: Tensor, bias: Tensor, *other: Tensor) -> Tensor:
        if not act:
            return TF.conv2d(x, weight, bias, stride, pad, dilation, groups)
        added = other[0] if other else None
        return TF.conv2d_act(x, weight, bias, stride, pad, dilation, groups, activation=act, residual=added)

    def build() -> Problem:
        fan_in = channels // groups * kernel * kernel
        x = in_layout(randn(n, channels, height, width, dtype=dtype), layout)
        weight = in_layout(
            randn(out, channels // groups, kernel, kernel, dtype=dtype, seed=1, scale=fan_in**-0.5), layout
        )
        bias = randn(out, dtype=dtype, seed=2)
        reach = dilation * (kernel - 1) + 1
        ho, wo = (height + 2 * pad - reach) // stride + 1, (width + 2 * pad - reach) // stride + 1
        added = [in_layout(randn(n, out, ho, wo, dtype=dtype, seed=3), layout)] if residual else []
        flops = 2.0 * n * ho * wo * out * fan_in
        s, y = element_size(dtype), n * ho * wo * out
        forward = s * (x.numel() + weight.numel() + y * (2 if residual else 1))
        weights = s * (x.numel() + y + weight.numel())
        inputs = 0 if first else s * (y + weight.numel() + x.numel())
        return Problem(
            inputs=[x, weight, bias, *added],
            native=native,
            ours=ours,
            work={FORWARD: Work(flops, forward), TRAIN: Work(flops * (2 if first else 3), forward + weights + inputs)},
            differentiable=(1, 2) if first else None,
            terms=max(fan_in, n * ho * wo, out // groups * kernel * kernel),
        )

    name = f"{shape} {kernel}x{kernel}->{out}"
    name += "".join(
        f" {letter}{value}" for letter, value in (("s", stride), ("d", dilation), ("g", groups)) if value != 1
    )
    detail = f"{layout} residual" if residual else layout
    detail += f" {act}" if act not in ("", "relu") else ""
    form = "conv2d_act" if act else "conv2d"
    kind = kind or _kind(n, channels, kernel, stride, dilation, groups, first)
    return Case("conv2d", form, name, build, dtype, detail, accuracy=8, kind=kind, **options)


def _both_layouts(shape: str, out: int, kernel: int, dtype: torch.dtype = torch.float32, **options: Any) -> list[Case]:
    """One case where there is one channel: its two layouts are the same tensor."""
    layouts = ("NCHW", "NHWC") if dims(shape)[1] > 1 else ("NCHW",)
    return [_case(shape, out, kernel, dtype, layout, **options) for layout in layouts]


def _network_cases() -> list[Case]:
    return [
        case
        for layer in LAYERS
        for batch in layer.batches
        for case in _both_layouts(
            f"{batch}x{layer.image}", layer.out, layer.kernel, quick=batch in layer.quick, **layer.options()
        )
    ]


_BF16, _FP16, _FP64 = torch.bfloat16, torch.float16, torch.float64

CASES = [
    *_network_cases(),
    *_both_layouts("8x128x28", 128, 3, groups=8),
    *_both_layouts("4x64x28", 64, 3, dilation=2),
    *_both_layouts("4x64x28", 64, 3, dilation=3),
    # Primes, one channel, one more than a block, images that are no squares.
    *_both_layouts("8x61x29", 67, 3, kind="odd"),
    _case("4x1x127", 1, 3, kind="odd"),
    *_both_layouts("2x513x17", 257, 3, kind="odd"),
    *_both_layouts("2x513x17", 513, 1, kind="odd"),
    *_both_layouts("8x64x3x200", 64, 3, kind="odd"),
    # The layers of examples/digits.py.
    _case("64x1x8", 64, 3, first=True),
    *_both_layouts("64x64x8", 128, 3, quick=True),
    *_both_layouts("64x128x4", 128, 3),
    # Other types: a layer of each class.
    *_both_layouts("8x128x28", 128, 3, _BF16),
    *_both_layouts("8x512x7", 512, 3, _BF16),
    *_both_layouts("8x192x13", 384, 3, _BF16),
    *_both_layouts("8x64x56", 256, 1, _BF16),
    *_both_layouts("8x128x56", 128, 3, _BF16, stride=2),
    *_both_layouts("8x3x224", 64, 7, _BF16, stride=2, first=True),
    *_both_layouts("8x3x224", 32, 3, _BF16, stride=2, first=True),
    *_both_layouts("8x3x224", 64, 11, _BF16, stride=4, padding=2, first=True),
    *_both_layouts("8x3x224", 768, 16, _BF16, stride=16, padding=0, first=True),
    *_both_layouts("8x96x56", 96, 3, _BF16, groups=96),
    *_both_layouts("8x128x28", 128, 3, _BF16, groups=8),
    *_both_layouts("8x128x28", 128, 3, _FP16),
    _case("8x64x56", 256, 1, _FP16, "NHWC"),
    *_both_layouts("8x128x28", 128, 3, _FP64),
    _case("8x64x56", 256, 1, _FP64, "NHWC"),
    *_both_layouts("8x128x28", 128, 3, act="relu"),
    *_both_layouts("8x256x14", 256, 3, act="relu", residual=True, quick=True),
    _case("8x128x28", 128, 3, layout="NHWC", act="gelu", residual=True, quick=True),
    _case("8x64x56", 256, 1, layout="NHWC", act="silu"),
    *_both_layouts("8x96x56", 96, 3, groups=96, act="relu6"),
]

GPU = [
    _case("64x64x56", 64, 3, _BF16, "NHWC", quick=True),
    _case("64x256x14", 256, 3, _BF16, "NHWC", quick=True),
    _case("64x512x7", 512, 3, _BF16, "NHWC"),
    _case("64x64x56", 256, 1, _BF16, "NHWC", quick=True),
    _case("64x128x56", 128, 3, _BF16, "NHWC", stride=2),
    _case("64x256x14", 256, 3, _BF16),
    _case("64x3x224", 64, 7, _BF16, "NHWC", stride=2, padding=3, first=True),
    _case("64x192x56", 192, 7, _BF16, "NHWC", groups=192, quick=True),
    _case("64x96x56", 96, 3, _BF16, groups=96),
    _case("64x144x28", 144, 3, _BF16, "NHWC", groups=144, stride=2),
    _case("64x128x28", 128, 3, _BF16, "NHWC", groups=8),
    _case("64x256x14", 256, 3, _BF16, "NHWC", act="relu", residual=True, quick=True),
    _case("256x1x28", 6, 5, _BF16, padding=0, first=True),
]

SWEEP = [_case(f"8x{c}x28", c, 3, size=9.0 * 8 * 784 * c * c) for c in (4, 8, 16, 32, 48, 64, 96, 128, 192, 256)]

"""What a conv2d is asked to do: its sizes, checked once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from . import DTYPES
from .conv2d_schedule import LARGEST_PLANE


@dataclass(frozen=True)
class Shape:
    """A convolution that was checked; pairs are (vertical, horizontal). channels and filters are those of one group."""

    images: int
    channels: int
    filters: int
    groups: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    out: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    channels_last: bool

    @property
    def output_size(self) -> tuple[int, int, int, int]:
        return self.images, self.groups * self.filters, *self.out

    @property
    def empty(self) -> bool:
        return 0 in (self.images, self.channels, self.filters, *self.out)

    @property
    def depthwise(self) -> bool:
        return self.channels == 1 and self.groups > 1 and not self.empty

    @property
    def pixels(self) -> int:
        return self.images * self.out[0] * self.out[1]

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def _pair(values: Sequence[int], name: str, smallest: int) -> tuple[int, int]:
    """One value stands for both directions, as in torch."""
    torch._check(
        len(values) in (1, 2) and min(values) >= smallest,
        lambda: f"conv2d: {name} must be one value or two of at least {smallest}, got {list(values)}",
    )
    return values[0], values[-1]


def check(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Shape:
    """What check_conv2d of csrc/ops/conv2d.cpp checks."""
    if input.dtype not in DTYPES or weight.dtype != input.dtype:
        raise RuntimeError(f"conv2d: weight must have input's dtype {input.dtype}, got {weight.dtype}")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != input.dtype):
        raise RuntimeError(
            f"conv2d: bias must have shape {list(weight.shape[:1])} and dtype {input.dtype}, got {list(bias.shape)} "
            f"and {bias.dtype}"
        )
    for tensor in (weight, bias):
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(f"conv2d: all tensors must be on input's device {input.device}, got {tensor.device}")
    return _shape(
        input.shape, input.stride(), weight.shape, weight.stride(), tuple(stride), tuple(padding), tuple(dilation),
        groups,
    )  # fmt: skip


def _is_channels_last(size: Sequence[int], strides: Sequence[int]) -> bool:
    tensor = torch.empty_strided(size, strides, device="meta")
    return torch._prims_common.suggest_memory_format(tensor) == torch.channels_last


@lru_cache(maxsize=4096)
def _shape(
    input: torch.Size,
    input_strides: tuple[int, ...],
    weight: torch.Size,
    weight_strides: tuple[int, ...],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Shape:
    """Remembered, because the checks take longer than everything else between the op's call and its launch."""
    torch._check(len(input) == 4, lambda: f"conv2d: input must be [C, H, W] or [N, C, H, W], got {input}")
    torch._check(
        len(weight) == 4,
        lambda: f"conv2d: weight must be [filters, channels / groups, height, width], got shape {weight}",
    )
    torch._check(groups > 0, lambda: f"conv2d: groups must be positive, got {groups}")
    stride, padding = _pair(stride, "stride", 1), _pair(padding, "padding", 0)
    dilation = _pair(dilation, "dilation", 1)
    filters = weight[0]
    torch._check(
        filters % groups == 0 and (filters > 0 or input[0] == 0),
        lambda: f"conv2d: the number of filters must be a multiple of groups = {groups}, got weight {weight}",
    )
    torch._check(
        weight[1] * groups == input[1],
        lambda: (
            f"conv2d: input must have weight.size(1) * groups = {weight[1] * groups} channels, "
            f"got input {input} with weight {weight} and groups = {groups}"
        ),
    )
    size, kernel = (input[2], input[3]), (weight[2], weight[3])
    out = []
    for n, k, p, d, s in zip(size, kernel, padding, dilation, stride, strict=True):
        reach = d * (k - 1) + 1
        torch._check(
            k > 0 and reach <= n + 2 * p,
            lambda reach=reach, padded=n + 2 * p: (
                f"conv2d: the kernel must not be larger than the padded input ({padded}), got {reach}"
            ),
        )
        out.append((n + 2 * p - reach) // s + 1)
    reason = _too_large(size, out, padding, stride)
    torch._check(reason is None, lambda: f"conv2d: {reason}")
    return Shape(
        input[0], weight[1], filters // groups, groups, size, kernel, (out[0], out[1]), stride, padding, dilation,
        _is_channels_last(input, input_strides) or _is_channels_last(weight, weight_strides),
    )  # fmt: skip


def _too_large(size: Sequence[int], out: Sequence[int], padding: Sequence[int], stride: Sequence[int]) -> str | None:
    limit = LARGEST_PLANE
    reach = max(max(size) + 2 * max(padding), max(stride))
    if max(size[0] * size[1], out[0] * out[1], reach) > limit:
        return f"planes of more than {limit} pixels have no GPU kernel here"
    return None

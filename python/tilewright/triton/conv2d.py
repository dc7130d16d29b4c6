"""conv2d on the GPU: implicit GEMMs in NHWC (docs/conv2d.md, "On the GPU").

Inputs whose channels are not innermost are copied to channels_last once; results are written straight in the promised
format. Depthwise convolutions go to the CUDA C++ kernels where those are there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import Parameter, signature

import torch
import triton.language as tl
from torch import Tensor

from . import conv2d_schedule as schedule
from .activation import CODES, gradient_reads_input
from .conv2d_product import product
from .conv2d_schedule import Tile
from .conv2d_weight_gradient import add_chunks, column_sums, weight_sums
from .variants import Variant, architecture_of, launch, type_name

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SUM_BLOCK = 256
_ROWS_BLOCK = (64, 64)


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
        return self.channels == 1 and self.groups > 1

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @cached_property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def _pair(values: Sequence[int], name: str, smallest: int) -> tuple[int, int]:
    """One value stands for both directions, as in torch."""
    torch._check(
        len(values) in (1, 2) and min(values) >= smallest,
        lambda: f"conv2d: {name} must be one value or two of at least {smallest}, got {list(values)}",
    )
    return values[0], values[-1]


def _is_channels_last(tensor: Tensor) -> bool:
    return torch._prims_common.suggest_memory_format(tensor) == torch.channels_last


def _check(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Shape:
    """What check_conv2d of csrc/ops/conv2d.cpp checks."""
    torch._check(input.dim() == 4, lambda: f"conv2d: input must be [C, H, W] or [N, C, H, W], got {input.shape}")
    torch._check(
        weight.dim() == 4,
        lambda: f"conv2d: weight must be [filters, channels / groups, height, width], got shape {weight.shape}",
    )
    torch._check(groups > 0, lambda: f"conv2d: groups must be positive, got {groups}")
    stride, padding = _pair(stride, "stride", 1), _pair(padding, "padding", 0)
    dilation = _pair(dilation, "dilation", 1)
    torch._check(
        input.dtype in _DTYPES and weight.dtype == input.dtype,
        lambda: f"conv2d: weight must have input's dtype {input.dtype}, got {weight.dtype}",
    )
    filters = weight.shape[0]
    torch._check(
        filters % groups == 0 and (filters > 0 or input.shape[0] == 0),
        lambda: f"conv2d: the number of filters must be a multiple of groups = {groups}, got weight {weight.shape}",
    )
    torch._check(
        weight.shape[1] * groups == input.shape[1],
        lambda: (
            f"conv2d: input must have weight.size(1) * groups = {weight.shape[1] * groups} channels, "
            f"got input {input.shape} with weight {weight.shape} and groups = {groups}"
        ),
    )
    torch._check(
        bias is None or (bias.shape == (filters,) and bias.dtype == input.dtype),
        lambda: f"conv2d: bias must have shape [{filters}] and dtype {input.dtype}, got {bias.shape} and {bias.dtype}",
    )
    for tensor in (weight, bias):
        torch._check(
            tensor is None or tensor.device == input.device,
            lambda: f"conv2d: all tensors must be on input's device {input.device}, got {tensor.device}",
        )
    size, kernel = tuple(input.shape[2:]), tuple(weight.shape[2:])
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
        input.shape[0], weight.shape[1], filters // groups, groups, size, kernel, (out[0], out[1]), stride, padding,
        dilation, _is_channels_last(input) or _is_channels_last(weight),
    )  # fmt: skip


def _too_large(size: Sequence[int], out: Sequence[int], padding: Sequence[int], stride: Sequence[int]) -> str | None:
    limit = schedule.LARGEST_PLANE
    reach = max(max(size) + 2 * max(padding), max(stride))
    if max(size[0] * size[1], out[0] * out[1], reach) > limit:
        return f"planes of more than {limit} pixels have no GPU kernel here"
    return None


def serves(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> str | None:
    """None, or why these kernels cannot compute a convolution of four-dimensional tensors."""
    size = list(input.shape[-2:])
    out = [
        (n + 2 * padding[d and -1] - dilation[d and -1] * (weight.shape[2 + d] - 1) - 1) // stride[d and -1] + 1
        for d, n in enumerate(size)
    ]
    return _too_large(size, out, padding, stride)


# The variants.


def _bits(dtype: torch.dtype) -> int:
    """What the tables call a product's precision: 16, 32, or 19 where torch allows TF32."""
    if dtype != torch.float32:
        return 16
    return 19 if torch.backends.cudnn.allow_tf32 else 32


def _variant(kernel: Callable, pointers: dict[str, str], constants: dict, warps: int, stages: int) -> Variant:
    """A variant whose integer arguments are as the kernel annotates them; constants in the kernel's order."""
    types, ordered = [], []
    for name, parameter in signature(kernel.fn).parameters.items():
        if parameter.annotation is tl.constexpr:
            ordered.append((name, constants[name]))
        elif parameter.annotation is Parameter.empty:
            types.append((name, "*" + pointers[name]))
        else:
            types.append((name, {"int32": "i32", "int64": "i64"}[parameter.annotation.name]))
    return Variant(kernel, tuple(types), tuple(ordered), warps, stages)


@cache
def _product_variant(dtype: torch.dtype, bits: int, mode: str, vector: int, gradient: bool, tile: Tile) -> Variant:
    element = type_name(dtype)
    pointers = dict.fromkeys(("x", "weight", "bias", "residual", "output", "saved"), element)
    constants = {
        "MODE": mode,
        "VECTOR": vector,
        "WIDEST": 16 // dtype.itemsize,
        "GRADIENT": gradient,
        "PRECISION": "ieee" if bits == 32 else "tf32",
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_K": tile.depth,
        "SLICE": schedule.finished_at_a_time(tile),
    }
    return _variant(product, pointers, constants, tile.warps, tile.stages)


@cache
def _weight_variant(dtype: torch.dtype, bits: int, mode: str, vector: int, grad_vector: int, tile: Tile) -> Variant:
    element = type_name(dtype)
    pointers = {"grad": element, "x": element, "partial": "fp32"}
    constants = {
        "MODE": mode,
        "VECTOR": vector,
        "GRAD_VECTOR": grad_vector,
        "PRECISION": "ieee" if bits == 32 else "tf32",
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_K": tile.depth,
    }
    return _variant(weight_sums, pointers, constants, tile.warps, tile.stages)


@cache
def _column_variant(dtype: torch.dtype) -> Variant:
    rows, columns = _ROWS_BLOCK
    pointers = {"grad": type_name(dtype), "partial": "fp32"}
    return _variant(column_sums, pointers, {"BLOCK_M": rows, "BLOCK_N": columns}, 4, 3)


@cache
def _chunks_variant(dtype: torch.dtype) -> Variant:
    return _variant(add_chunks, {"partial": "fp32", "output": type_name(dtype)}, {"BLOCK": _SUM_BLOCK}, 4, 3)


def variants(architecture: int) -> list[Variant]:
    """Every variant that an architecture's tables can launch."""
    listed = []
    for dtype in _DTYPES:
        widest = 16 // dtype.itemsize
        listed += [_column_variant(dtype), _chunks_variant(dtype)]
        for bits in (32, 19) if dtype == torch.float32 else (16,):
            for mode, vectors in (("taps", (widest,)), ("flat", (1,)), ("merged", (1, widest))):
                for vector in vectors:
                    for tile in schedule.product_tiles(architecture, bits, mode):
                        for gradient in (False, True):
                            listed.append(_product_variant(dtype, bits, mode, vector, gradient, tile))
                    for tile in schedule.weight_tiles(architecture, bits, mode):
                        for grad_vector in (1, widest) if mode == "flat" else (vector,):
                            listed.append(_weight_variant(dtype, bits, mode, vector, grad_vector, tile))
    return listed


# From Tensors to launches.


def _channels_innermost(tensor: Tensor) -> Tensor:
    """The tensor where its channels are dense, else a channels_last copy."""
    dense = tensor.stride(1) == 1 or tensor.shape[1] == 1
    return tensor if dense else tensor.contiguous(memory_format=torch.channels_last)


def _aligned(tensor: Tensor, *runs: int) -> bool:
    """Does every run of so many elements, wherever in a tensor of dense channels it starts, start at 16 bytes?"""
    widest = 16 // tensor.dtype.itemsize
    strides = [tensor.stride(d) for d in (0, 2, 3) if tensor.shape[d] > 1]
    return tensor.data_ptr() % 16 == 0 and all(n % widest == 0 for n in (*strides, *runs))


def _window_arguments(shape: Shape) -> dict[str, int]:
    return {
        f"{name}_{axis}": values[d]
        for name, values in (
            ("kernel", shape.kernel),
            ("stride", shape.stride),
            ("padding", shape.padding),
            ("dilation", shape.dilation),
        )
        for d, axis in enumerate(("height", "width"))
    }


def _run_product(
    shape: Shape,
    x: Tensor,
    weight: Tensor,
    output: Tensor,
    gradient: bool,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    saved: Tensor | None = None,
    activation: str = "none",
) -> None:
    """Forward, or the data gradient where x is the output's gradient and output the input's."""
    reduced, columns = (shape.filters, shape.channels) if gradient else (shape.channels, shape.filters)
    bits, architecture = _bits(x.dtype), architecture_of(x.device)
    widest = 16 // x.dtype.itemsize
    x = _channels_innermost(x)
    weight = weight.contiguous(memory_format=torch.channels_last)
    # In the data gradient the weight's channels are the columns.
    aligned = _aligned(x, reduced) and _aligned(weight, shape.channels)
    mode, depth = schedule.reading(architecture, bits, reduced, columns, shape.groups, aligned)
    merge = schedule.merged_groups(reduced, columns, shape.groups) if mode == "merged" else 1
    vector = (
        widest if mode == "taps" or (mode == "merged" and _aligned(x, merge * reduced, shape.groups * reduced)) else 1
    )
    classes = tuple(min(s, n) for s, n in zip(shape.stride, shape.size, strict=True)) if gradient else (1, 1)
    result_size = shape.size if gradient else shape.out
    pixels = shape.images * -(-result_size[0] // classes[0]) * -(-result_size[1] // classes[1])
    tile_groups = -(-shape.groups // merge)
    tile = schedule.choose_tile(
        architecture,
        schedule.product_tiles(architecture, bits, mode),
        pixels,
        merge * columns,
        tile_groups * classes[0] * classes[1],
        depth,
    )
    pixel_tiles, column_tiles = -(-pixels // tile.rows), -(-merge * columns // tile.columns)
    total = shape.groups * columns
    stores_vectors = shape.channels_last and all(n % widest == 0 for n in (total, merge * columns))
    for tensor in (output, residual):
        stores_vectors = stores_vectors and (tensor is None or tensor.data_ptr() % 16 == 0)
    in_size = shape.out if gradient else shape.size
    arguments = {
        "x": x,
        "weight": weight,
        "bias": output if bias is None else bias.contiguous(),
        "residual": output if residual is None else residual,
        "output": output,
        "saved": output if saved is None else saved,
        "images": shape.images,
        "channels": reduced,
        "filters": columns,
        "groups": shape.groups,
        "merge": merge,
        "in_height": in_size[0],
        "in_width": in_size[1],
        "out_height": result_size[0],
        "out_width": result_size[1],
        **_window_arguments(shape),
        "spacing_height": schedule.tap_spacing(shape.stride[0], shape.dilation[0]) if gradient else 1,
        "spacing_width": schedule.tap_spacing(shape.stride[1], shape.dilation[1]) if gradient else 1,
        "classes_width": classes[1],
        "x_image": x.stride(0),
        "x_row": x.stride(2),
        "x_pixel": x.stride(3),
        "pixel_tiles": pixel_tiles,
        "column_tiles": column_tiles,
        "has_bias": int(bias is not None),
        "has_residual": int(residual is not None),
        "has_saved": int(saved is not None),
        "activation": CODES[activation],
        "planes": int(not shape.channels_last),
        "stores_vectors": int(stores_vectors),
    }
    variant = _product_variant(x.dtype, bits, mode, vector, gradient, tile)
    launch(variant, (pixel_tiles * column_tiles * tile_groups * classes[0] * classes[1],), arguments)


def _weight_gradient(shape: Shape, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    bits, architecture = _bits(x.dtype), architecture_of(x.device)
    widest = 16 // x.dtype.itemsize
    x = _channels_innermost(x)
    grad_aligned, aligned = _aligned(grad, shape.filters), _aligned(x, shape.channels)
    merge, vector, grad_vector = 1, 1, 1
    if shape.groups > 1 and max(shape.channels, shape.filters) <= schedule.SMALL_GROUP:
        mode, merge = "merged", schedule.merged_groups(shape.channels, shape.filters, shape.groups)
        whole = [[merge * n, shape.groups * n] for n in (shape.channels, shape.filters)]
        if _aligned(x, *whole[0]) and _aligned(grad, *whole[1]):
            vector = grad_vector = widest
    elif aligned and grad_aligned and shape.channels * 2 > 64:
        mode, vector, grad_vector = "taps", widest, widest
    else:
        mode, grad_vector = "flat", widest if grad_aligned else 1
    filters, columns = merge * shape.filters, merge * shape.channels * (shape.taps if mode == "flat" else 1)
    tile = schedule.choose_weight_tile(schedule.weight_tiles(architecture, bits, mode), filters, columns)
    filter_tiles, column_tiles = -(-filters // tile.rows), -(-columns // tile.columns)
    tiles = filter_tiles * column_tiles * -(-shape.groups // merge) * (1 if mode == "flat" else shape.taps)
    pixels = shape.images * shape.out[0] * shape.out[1]
    chunk, chunks = schedule.split_pixels(architecture, tiles, pixels, tile.depth)
    step_images, step_rows, step_columns = schedule.pixel_step(tile.depth, *shape.out)
    partial = torch.empty((chunks, weight.numel()), dtype=torch.float32, device=x.device)
    arguments = {
        "grad": grad,
        "x": x,
        "partial": partial,
        "images": shape.images,
        "channels": shape.channels,
        "filters": shape.filters,
        "groups": shape.groups,
        "merge": merge,
        "in_height": shape.size[0],
        "in_width": shape.size[1],
        "out_height": shape.out[0],
        "out_width": shape.out[1],
        **_window_arguments(shape),
        "x_image": x.stride(0),
        "x_row": x.stride(2),
        "x_pixel": x.stride(3),
        "chunk": chunk,
        "step_images": step_images,
        "step_rows": step_rows,
        "step_columns": step_columns,
        "filter_tiles": filter_tiles,
        "column_tiles": column_tiles,
    }
    launch(_weight_variant(x.dtype, bits, mode, vector, grad_vector, tile), (tiles * chunks,), arguments)
    result = torch.empty(weight.shape, dtype=x.dtype, device=x.device, memory_format=shape.memory_format)
    _add_chunks(partial, result, shape.channels, shape.taps, transposes=not shape.channels_last)
    return result


def _add_chunks(partial: Tensor, result: Tensor, inner: int, middle: int, transposes: bool) -> None:
    arguments = {
        "partial": partial,
        "output": result,
        "size": partial.shape[1],
        "chunks": partial.shape[0],
        "inner": inner,
        "middle": middle,
        "transposes": int(transposes),
    }
    launch(_chunks_variant(result.dtype), (-(-partial.shape[1] // _SUM_BLOCK),), arguments)


def _bias_gradient(shape: Shape, grad: Tensor) -> Tensor:
    filters, pixels = grad.shape[1], shape.images * shape.out[0] * shape.out[1]
    filter_tiles = -(-filters // _ROWS_BLOCK[1])
    chunk, chunks = schedule.split_rows(pixels, filters, *_ROWS_BLOCK)
    partial = torch.empty((chunks, filters), dtype=torch.float32, device=grad.device)
    arguments = {
        "grad": grad,
        "partial": partial,
        "pixels": pixels,
        "filters": filters,
        "chunk": chunk,
        "filter_tiles": filter_tiles,
    }
    launch(_column_variant(grad.dtype), (chunks * filter_tiles,), arguments)
    result = torch.empty(filters, dtype=grad.dtype, device=grad.device)
    _add_chunks(partial, result, inner=1, middle=1, transposes=False)
    return result


# The ops.


def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    saves: bool,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    shape = _check(input, weight, bias, stride, padding, dilation, groups)
    torch._check(activation in CODES, lambda: f"conv2d: activation must be one of {list(CODES)}, got {activation!r}")
    torch._check(
        residual is None
        or (residual.shape == shape.output_size and residual.dtype == input.dtype and residual.device == input.device),
        lambda: (
            f"conv2d_act: residual must have (or broadcast to) the convolution's shape {list(shape.output_size)} and "
            f"have dtype {input.dtype}, got {list(residual.shape)} and {residual.dtype}"
        ),
    )
    memory_format = torch.contiguous_format if shape.empty else shape.memory_format
    output = torch.empty(shape.output_size, dtype=input.dtype, device=input.device, memory_format=memory_format)
    saved = torch.empty_like(output) if saves and gradient_reads_input(activation) else None
    if shape.empty:
        return output, saved
    if residual is not None:
        residual = residual.contiguous(memory_format=memory_format)
    _run_product(shape, input, weight, output, False, bias, residual, saved, activation)
    return output, saved


def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    shape = _check(input, weight, None, stride, padding, dilation, groups)
    torch._check(
        grad_output.shape == shape.output_size
        and grad_output.dtype == input.dtype
        and grad_output.device == input.device,
        lambda: (
            f"conv2d_backward: grad_output must have the output's shape {list(shape.output_size)} and dtype "
            f"{input.dtype}, got {list(grad_output.shape)} and {grad_output.dtype}"
        ),
    )
    if shape.empty:
        return (
            input.new_zeros(input.shape) if output_mask[0] else None,
            torch.zeros_like(weight) if output_mask[1] else None,
            weight.new_zeros(weight.shape[0]) if output_mask[2] else None,
        )
    grad = grad_output.contiguous(memory_format=torch.channels_last)
    grad_input = grad_weight = grad_bias = None
    if output_mask[0]:
        grad_input = torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=shape.memory_format)
        _run_product(shape, grad, weight, grad_input, True)
    if output_mask[1]:
        grad_weight = _weight_gradient(shape, grad, input, weight)
    if output_mask[2]:
        grad_bias = _bias_gradient(shape, grad)
    return grad_input, grad_weight, grad_bias


implementations = {"conv2d_forward": _forward, "conv2d_backward": _backward}

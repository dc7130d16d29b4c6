"""conv2d's products from Tensors to launches."""

from typing import Any

import torch
from torch import Tensor

from . import conv2d_schedule as schedule
from .activation import CODES
from .conv2d_shape import Shape
from .conv2d_variants import (
    ROWS_BLOCK,
    SUM_BLOCKS,
    chunks_variant,
    column_variant,
    product_bits,
    product_variant,
    weight_variant,
)
from .variants import architecture_of, launch


def _channels_innermost(tensor: Tensor) -> Tensor:
    """The tensor where its channels are dense, else a channels_last copy."""
    dense = tensor.stride(1) == 1 or tensor.shape[1] == 1
    return tensor if dense else tensor.contiguous(memory_format=torch.channels_last)


def _aligned(*tensors: Tensor) -> bool:
    """Does every pixel of tensors of dense channels start at a multiple of 16 bytes?"""
    return all(
        tensor.data_ptr() % 16 == 0
        and all(tensor.stride(d) * tensor.dtype.itemsize % 16 == 0 for d in (0, 2, 3) if tensor.shape[d] > 1)
        for tensor in tensors
    )


def _window_arguments(shape: Shape) -> dict[str, int]:
    pairs = {
        "kernel": shape.kernel,
        "stride": shape.stride,
        "padding": shape.padding,
        "dilation": shape.dilation,
    }
    axes = ((0, "height"), (1, "width"))
    return {f"{name}_{axis}": values[d] for name, values in pairs.items() for d, axis in axes}


def _place_arguments(x: Tensor, size: tuple[int, int], out: tuple[int, int]) -> dict[str, object]:
    """Where a kernel reads x; its size and that of the other side."""
    return {
        "x": x,
        "x_image": x.stride(0),
        "x_row": x.stride(2),
        "x_pixel": x.stride(3),
        "in_height": size[0],
        "in_width": size[1],
        "out_height": out[0],
        "out_width": out[1],
    }


def forward(
    shape: Shape,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    output: Tensor,
    saved: Tensor | None,
) -> None:
    """Fill output, and saved where there is one; residual lies in memory as they do."""
    epilogue = {
        "bias": output if bias is None else bias.contiguous(),
        "residual": output if residual is None else residual,
        "saved": output if saved is None else saved,
        "has_bias": int(bias is not None),
        "has_residual": int(residual is not None),
        "has_saved": int(saved is not None),
        "activation": CODES[activation],
    }
    _product(shape, input, weight, output, epilogue, gradient=False)


def data_gradient(shape: Shape, grad: Tensor, weight: Tensor) -> Tensor:
    size = (shape.images, shape.groups * shape.channels, *shape.size)
    result = torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=shape.memory_format)
    nothing = {"has_bias": 0, "has_residual": 0, "has_saved": 0, "activation": CODES["none"]}
    _product(
        shape, grad, weight, result, {"bias": result, "residual": result, "saved": result, **nothing}, gradient=True
    )
    return result


def _product(shape: Shape, x: Tensor, weight: Tensor, result: Tensor, epilogue: dict[str, Any], gradient: bool) -> None:
    """Forward, or the data gradient where x is the output's gradient."""
    reduced, columns = (shape.filters, shape.channels) if gradient else (shape.channels, shape.filters)
    in_size, out_size = (shape.out, shape.size) if gradient else (shape.size, shape.out)
    bits = product_bits(x.dtype)
    x = _channels_innermost(x)
    weight = weight.contiguous(memory_format=torch.channels_last)
    classes, spacing = (1, 1), (1, 1)
    if gradient:
        (step, across), (height, width) = shape.stride, shape.size
        classes = (min(step, height), min(across, width))
        spacing = (schedule.tap_spacing(step, shape.dilation[0]), schedule.tap_spacing(across, shape.dilation[1]))
    plan = schedule.plan_product(
        architecture_of(x.device), bits, shape.images, out_size, classes, reduced, columns, shape.groups, gradient,
        (_aligned(x), weight.data_ptr() % 16 == 0),
    )  # fmt: skip
    widest = schedule.widest_vector(bits)
    vectors = shape.channels_last and shape.groups * columns % widest == 0 and plan.merge * columns % widest == 0
    arguments = {
        "weight": weight,
        "output": result,
        "images": shape.images,
        "channels": reduced,
        "filters": columns,
        "groups": shape.groups,
        "merge": plan.merge,
        **_place_arguments(x, in_size, out_size),
        **_window_arguments(shape),
        "spacing_height": spacing[0],
        "spacing_width": spacing[1],
        "classes_width": classes[1],
        "pixel_tiles": plan.pixel_tiles,
        "column_tiles": plan.column_tiles,
        "planes": int(not shape.channels_last),
        "stores_vectors": int(vectors and _aligned(result, epilogue["residual"])),
        **epilogue,
    }
    variant = product_variant(x.dtype, bits, plan.mode, plan.vector, gradient, plan.tile)
    launch(variant, (plan.programs,), arguments)


def weight_gradient(shape: Shape, grad: Tensor, x: Tensor) -> Tensor:
    """grad is dense and channels_last."""
    bits = product_bits(x.dtype)
    x = _channels_innermost(x)
    plan = schedule.plan_weight(
        architecture_of(x.device), bits, shape.pixels, shape.taps, shape.channels, shape.filters, shape.groups,
        (_aligned(x), grad.data_ptr() % 16 == 0),
    )  # fmt: skip
    step_images, step_rows, step_columns = schedule.pixel_step(plan.tile.depth, *shape.out)
    size = (shape.groups * shape.filters, shape.channels, *shape.kernel)
    result = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=shape.memory_format)
    partial = torch.empty((plan.chunks, result.numel()), dtype=torch.float32, device=x.device)
    arguments = {
        "grad": grad,
        "partial": partial,
        "images": shape.images,
        "channels": shape.channels,
        "filters": shape.filters,
        "groups": shape.groups,
        "merge": plan.merge,
        **_place_arguments(x, shape.size, shape.out),
        **_window_arguments(shape),
        "chunk": plan.chunk,
        "step_images": step_images,
        "step_rows": step_rows,
        "step_columns": step_columns,
        "filter_tiles": plan.filter_tiles,
        "column_tiles": plan.column_tiles,
    }
    variant = weight_variant(x.dtype, bits, plan.mode, plan.vector, plan.grad_vector, plan.tile)
    launch(variant, (plan.tiles * plan.chunks,), arguments)
    _add_chunks(partial, result, shape.channels, shape.taps, transposes=not shape.channels_last)
    return result


def bias_gradient(shape: Shape, grad: Tensor) -> Tensor:
    """grad is dense and channels_last."""
    filters = shape.groups * shape.filters
    filter_tiles = -(-filters // ROWS_BLOCK[1])
    chunk, chunks = schedule.split_rows(shape.pixels, filters, *ROWS_BLOCK)
    partial = torch.empty((chunks, filters), dtype=torch.float32, device=grad.device)
    arguments = {
        "grad": grad,
        "partial": partial,
        "pixels": shape.pixels,
        "filters": filters,
        "chunk": chunk,
        "filter_tiles": filter_tiles,
    }
    widest = 16 // grad.dtype.itemsize
    vector = widest if filters % widest == 0 and grad.data_ptr() % 16 == 0 else 1
    launch(column_variant(grad.dtype, vector), (chunks * filter_tiles,), arguments)
    result = torch.empty(filters, dtype=grad.dtype, device=grad.device)
    _add_chunks(partial, result, inner=1, middle=1, transposes=False)
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
    block = SUM_BLOCKS[0] if partial.shape[0] > SUM_BLOCKS[1][0] else SUM_BLOCKS[1]
    launch(chunks_variant(result.dtype, block), (-(-partial.shape[1] // block[1]),), arguments)

"""conv2d on the GPU: implicit GEMMs in NHWC (docs/conv2d.md, "On the GPU").

Inputs whose channels are not innermost are copied to channels_last once; results are written straight in the promised
format. Depthwise convolutions go to the CUDA C++ kernels where those are there (outside a traced graph they already
went there in csrc/ops/conv2d.cpp, without a way through Python).
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import _backends
from .._meta.activation import gradient_reads_input
from . import conv2d_launch as run
from .activation import CODES
from .conv2d_shape import check
from .conv2d_variants import variants


@cache
def _depthwise_op(name: str, device: torch.device) -> Any | None:
    """The CUDA C++ library's op for depthwise convolutions, where that library serves the device."""
    if not hasattr(torch.ops.tilewright, name):
        return None
    if device.type == "cuda" and _backends.choices(device.index or 0)["batch_norm"].backend != "cuda":
        return None
    key = torch._C._dispatch_key_for_device(device.type)
    there = torch._C._dispatch_has_kernel_for_dispatch_key(f"tilewright::{name}", key)
    return getattr(torch.ops.tilewright, name).default if there else None


@cache
def _argument_names(op: Any) -> tuple[str, ...]:
    return tuple(argument.name for argument in op._schema.arguments)


def _call(op: Any, arguments: Mapping[str, Any]) -> Any:
    """Call an op with those of the arguments that its schema names: one of depthwise convolutions needs no groups."""
    return op(*(arguments[name] for name in _argument_names(op)))


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
    given = dict(locals())
    shape = check(input, weight, bias, stride, padding, dilation, groups)
    torch._check(activation in CODES, lambda: f"conv2d: activation must be one of {list(CODES)}, got {activation!r}")
    if residual is not None:
        got = f"{list(residual.shape)} and {residual.dtype}"
        fits = residual.shape == shape.output_size and residual.dtype == input.dtype
        torch._check(
            fits and residual.device == input.device,
            lambda: (
                f"conv2d_act: residual must have (or broadcast to) the convolution's shape {list(shape.output_size)} "
                f"and have dtype {input.dtype}, got {got}"
            ),
        )
    if shape.depthwise and (op := _depthwise_op("depthwise_forward", input.device)) is not None:
        return _call(op, given)
    memory_format = torch.contiguous_format if shape.empty else shape.memory_format
    output = torch.empty(shape.output_size, dtype=input.dtype, device=input.device, memory_format=memory_format)
    saved = torch.empty_like(output) if saves and gradient_reads_input(activation) else None
    if shape.empty:
        return output, saved
    if residual is not None:
        residual = residual.contiguous(memory_format=memory_format)
    run.forward(shape, input, weight, bias, residual, activation, output, saved)
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
    given = dict(locals())
    shape = check(input, weight, None, stride, padding, dilation, groups)
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
    if shape.depthwise and (op := _depthwise_op("depthwise_backward", input.device)) is not None:
        return _call(op, given)
    grad = grad_output.contiguous(memory_format=torch.channels_last)
    return (
        run.data_gradient(shape, grad, weight) if output_mask[0] else None,
        run.weight_gradient(shape, grad, input) if output_mask[1] else None,
        run.bias_gradient(shape, grad) if output_mask[2] else None,
    )


implementations = {"conv2d_forward": _forward, "conv2d_backward": _backward}

__all__ = ["implementations", "variants"]

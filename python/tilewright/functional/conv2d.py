"""Two-dimensional convolution, alone and with its bias, residual and activation."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from ._errors import native_type_errors
from ._overrides import call_override_by_name

_conv2d = torch.ops.tilewright.conv2d.default
_conv2d_act = torch.ops.tilewright.conv2d_act.default

_Pair = int | Sequence[int]


def both(value: _Pair) -> Sequence[int]:
    """One number stands for both directions."""
    return value if isinstance(value, (tuple, list)) else (value, value)


def resolve_padding(
    input: Tensor, weight: Tensor, stride: _Pair, padding: str, dilation: _Pair
) -> tuple[Tensor, tuple[int, int]]:
    """What native does with "valid" and "same": where one side needs one more, the input is padded there."""
    for name, value in (("stride", stride), ("dilation", dilation)):
        if value is None:
            raise TypeError(f"conv2d(): argument '{name}' must be one number or two, not None")
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise RuntimeError(f'conv2d: padding must be "same", "valid" or numbers, got "{padding}"')
    if any(s != 1 for s in both(stride)):
        raise RuntimeError(f'conv2d: padding="same" must come with stride 1, got stride {stride}')
    if not isinstance(weight, Tensor):
        raise TypeError(f"conv2d(): argument 'weight' must be Tensor, not {type(weight).__name__}")
    if weight.dim() != 4:
        raise RuntimeError(
            f"conv2d: weight must be [filters, channels / groups, height, width], got shape {tuple(weight.shape)}"
        )
    steps = both(dilation)
    if len(steps) == 0:
        raise RuntimeError(f"conv2d: dilation must be one value or two, got {dilation}")
    totals = [steps[0] * (weight.shape[2] - 1), steps[-1] * (weight.shape[3] - 1)]
    extra = [total % 2 for total in totals]
    if any(extra):
        input = torch.constant_pad_nd(input, [0, extra[1], 0, extra[0]])
    return input, (totals[0] // 2, totals[1] // 2)


@native_type_errors
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Pair = 1,
    padding: str | _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlate input with weight: out[n, f, y, x] = bias[f] + sum of weight[f, c, i, j] * input[n, c, y', x'].

    Drop-in for :func:`torch.nn.functional.conv2d`, where y' = y * stride - padding + i * dilation, and x' likewise.

    On CPUs, 3x3 and 5x5 kernels of stride 1 with 16 channels and filters of a group or more go by minimal filtering
    (Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv:1509.09308) except in float64, with a
    few times native's rounding error. TILEWRIGHT_WINOGRAD=0 in the environment or
    torch.use_deterministic_algorithms(True) ask for the plain sum. On CPUs with AMX, float32 and float16 are multiplied
    in parts of bfloat16 where that pays (Henry, Tang and Heinecke, arXiv:1904.06376), as exactly as in float32;
    TILEWRIGHT_SPLIT=0 turns it off.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, float64, bfloat16 or float16; other tensors go to native.
        weight: [F, C / groups, KH, KW], of input's dtype.
        bias: [F] or None.
        stride: step between outputs, one number or (vertical, horizontal).
        padding: zeros on both sides, one number or two; "valid" (none) or "same" (keeps the size, at stride 1).
        dilation: step between the kernel's taps, one number or two.
        groups: how many sets of channels and filters go separately; groups = C is a depthwise convolution.

    Returns:
        [N, F, OH, OW] or [F, OH, OW], channels_last where input or weight is.

    Raises:
        RuntimeError: sizes, dtypes or options do not fit together.

    Example:
        >>> y = tilewright.functional.conv2d(torch.randn(8, 3, 224, 224), torch.randn(64, 3, 7, 7), stride=2, padding=3)
    """
    if has_torch_function_variadic(input, weight, bias):
        return call_override_by_name(torch.nn.functional.conv2d, conv2d, (input, weight, bias), locals())
    if isinstance(padding, str):
        input, padding = resolve_padding(input, weight, stride, padding, dilation)
    return _conv2d(input, weight, bias, both(stride), both(padding), both(dilation), groups)


@native_type_errors
def conv2d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Pair = 1,
    padding: str | _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    residual: Tensor | None = None,
) -> Tensor:
    """activation(conv2d(input, ...) + residual), all of it applied while the result is in cache.

    Args:
        input: as are weight, bias, stride, padding, dilation and groups: those of :func:`conv2d`.
        activation: "none", "relu", "relu6", "gelu", "gelu_tanh" or "silu".
        residual: of the result's shape and dtype, or broadcasting to it, added before the activation. A dtype that has
            no kernel here (an integer) is promoted by native. Under autocast it is cast as input is, and the result has
            autocast's dtype (separate ops would add a float32 residual in float32).

    Returns:
        What conv2d returns.

    Raises:
        ValueError: an unknown activation.
        RuntimeError: as conv2d; residual has another floating dtype than the result, or a shape that does not broadcast
            to it.

    Example:
        >>> y = tilewright.functional.conv2d_act(x, weight, bias, padding=1, activation="relu", residual=x)
    """
    if has_torch_function_variadic(input, weight, bias, residual):
        return call_override_by_name(conv2d_act, conv2d_act, (input, weight, bias, residual), locals())
    if isinstance(padding, str):
        input, padding = resolve_padding(input, weight, stride, padding, dilation)
    return _conv2d_act(
        input,
        weight,
        bias,
        both(stride),
        both(padding),
        both(dilation),
        groups,
        activation=activation,
        residual=residual,
    )

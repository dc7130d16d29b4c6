"""Which function __torch_function__ is told of: torch's for tensor subclasses, which know no other; else ours."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Proxy
from torch.overrides import _get_overloaded_args, handle_torch_function


def call_override(
    native: Callable[..., Tensor], ours: Callable[..., Tensor], tensors: Sequence[Any], *args: Any, **kwargs: Any
) -> Any:
    """Handle a call for which has_torch_function_variadic(*tensors) is true.

    A mode (torch.device as a context, torch.export's tracing, ...) sees the function that was called and runs it, and
    torch.fx writes it into its graph, so our kernels stay in use. A subclass that brings its own __torch_function__
    sees native's function.
    """
    subclassed = any(type(t) is not Tensor and not isinstance(t, Proxy) for t in _get_overloaded_args(tensors))
    function = native if subclassed else ours
    return handle_torch_function(function, tensors, *args, **kwargs)


def call_override_by_name(
    native: Callable[..., Tensor], ours: Callable[..., Tensor], tensors: Sequence[Any], arguments: dict[str, Any]
) -> Any:
    """call_override for long signatures. arguments: the function's locals() at its first line.

    The leading tensors travel by position, as in calls of torch's functions, everything behind them by name.
    """
    leading = 0
    names = list(arguments)
    while leading < min(len(names), len(tensors)) and arguments[names[leading]] is tensors[leading]:
        leading += 1
    by_name = {name: arguments[name] for name in names[leading:]}
    return call_override(native, ours, tensors, *tensors[:leading], **by_name)

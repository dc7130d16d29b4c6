"""Our layers in torch.fx's graphs and in TorchScript.

torch.fx takes torch.nn's layers as leaves (call_module) by the name of their Python module, so it would trace into
ours, and a graph made in training would drop and normalise so for ever. A layer that finds itself traced therefore asks
the tracer what it would have done with the torch.nn layer, and writes itself into the graph as that.

torch.jit.script compiles Python source, which ours is not written for; it gets the torch.nn layers back.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.fx import Proxy, Tracer

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=torch.nn.Module)

_ABSENT: Any = object()
logger = logging.getLogger("tilewright")


class DropIn:
    """Base of the layers that stand for one of torch.nn's and nothing more."""

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script asks for, and puts into the model: this object, as the torch.nn layer it stands for."""
        kind = type(self)
        self.__class__ = getattr(kind, "tilewright_original", None) or _native_class(kind)
        logger.warning("torch.jit.script: %s restored; the script runs torch's own kernels", kind.__name__)
        return self


def _native_class(kind: type) -> type:
    """The first class in the order of inheritance that is not tilewright's."""
    return next(c for c in kind.__mro__ if not c.__module__.startswith("tilewright."))


def leaf_when_traced(forward: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """A layer's forward that torch.fx records as one call of the layer where torch.nn's would be one."""

    @functools.wraps(forward)
    def wrapper(self: M, input: Any = _ABSENT, *args: Any, **kwargs: Any) -> R:
        if type(input) is Tensor and not args and not kwargs:  # the common case costs 80 ns
            return call(self, input)
        arguments = args if input is _ABSENT else (input, *args)
        first = arguments[0] if arguments else next(iter(kwargs.values()), None)
        if isinstance(first, Proxy) and _is_leaf(first.tracer, self):
            tracer: Any = first.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), arguments, kwargs)
        return call(self, *arguments, **kwargs)

    call: Callable[..., R] = forward
    vars(wrapper)["tilewright_traced"] = forward
    return wrapper


def _is_leaf(tracer: Any, layer: torch.nn.Module) -> bool:
    """Whether the tracer would take as a leaf the layer that this one stands for, seen as an object of that class."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return False  # they have run on the proxy already, so they are part of the graph and must not run again
    if layer is getattr(tracer, "root", None):
        return False  # traced itself: torch.fx looks into any module it is handed
    counterpart: Any = object.__new__(_native_class(type(layer)))
    object.__setattr__(counterpart, "__dict__", layer.__dict__)
    return isinstance(tracer, Tracer) and tracer.is_leaf_module(counterpart, tracer.path_of_module(layer))

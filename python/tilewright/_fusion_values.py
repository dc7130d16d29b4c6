"""What a module's forward sees while it is traced: values that are not there yet, and stand-ins for modules.

Both answer what a graph can hold or a guard can watch, and refuse every other question.
"""

import enum
import operator
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Attribute

from ._fusion_purity import is_simple, why_defaults

MISSING: Any = type("MISSING", (), {"__repr__": lambda self: "(absent)"})()


class Recorded:
    """What forward sees of a value in the graph; isinstance, len and unknown attributes can not be answered."""

    node: Any
    tracer: Any

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if asking.startswith(
            ("torch.fx", "torch.utils._pytree", "torch.overrides", "torch._ops", "tilewright._fusion")
        ):
            return type(self)
        return self.tracer.refuse("asks for the type of a value")

    def __getattr__(self, name: str) -> Any:
        if not hasattr(torch.Tensor, name):
            self.tracer.refuse(f"asks a value for its attribute {name}")
        if name in ("is_nested", "device") and type(self) is Value and self.node.op == "placeholder":
            if name == "is_nested":
                return False  # looked at before the graph is run
            self.tracer.reads_device = True
            return self.tracer.device
        return _Member(typing.cast(fx.Proxy, self), name)

    def __len__(self) -> int:
        return self.tracer.refuse("takes the length of a value")

    def __contains__(self, item: object) -> bool:
        return self.tracer.refuse("looks into a value")


class Value(Recorded, fx.Proxy):
    """A tensor, or whatever else a step of the graph gives."""


class _Member(Recorded, Attribute):
    """A method of a value, or an attribute."""


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    # torch.fx has none of these and would write x + y for x += y
    setattr(Recorded, f"__{_name}__", _in_place(getattr(operator, _name)))


class StandIn:
    """A module as its own code sees it while it is traced: attributes are noted, children recorded when called."""

    __slots__ = ("_standing",)

    def __init__(self, tracer: Any, module: torch.nn.Module, path: str) -> None:
        object.__setattr__(self, "_standing", (tracer, module, path))

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._standing[1])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tracer, module, path = self._standing
        if not path:
            tracer.refuse("calls itself")
        tracer.modules[path] = module
        return tracer.create_proxy("call_module", path, args, kwargs)

    def __setattr__(self, name: str, value: object) -> None:
        self._standing[0].refuse(f"sets its attribute {name}")

    def __delattr__(self, name: str) -> None:
        self._standing[0].refuse(f"deletes its attribute {name}")

    def __bool__(self) -> bool:
        return not hasattr(type(self._standing[1]), "__len__") or len(self) > 0

    def __getattr__(self, name: str) -> Any:
        tracer, module, path = self._standing
        kind = type(module)
        if kind.__getattr__ is not torch.nn.Module.__getattr__ or kind.__getattribute__ is not object.__getattribute__:
            tracer.refuse("reads attributes in a way of its own")
        if path and name in ("forward", "parameters", "named_parameters", "buffers", "state_dict"):
            tracer.refuse(f"reads {name} of its child {path}")
        found = next((vars(c)[name] for c in kind.__mro__ if name in vars(c)), MISSING)
        if hasattr(type(found), "__set__"):
            return found.__get__(self, kind)
        held = tracer.guard(vars(module), name)
        if held is not MISSING:
            return self._plain(name, held)
        if found is not MISSING:
            owner = next(c for c in kind.__mro__ if name in vars(c))
            if not owner.__module__.startswith("torch."):
                tracer.guard(vars(owner), name)
            reason = why_defaults(found)
            if reason:
                tracer.refuse(reason)
            return found.__get__(self, kind) if hasattr(type(found), "__get__") else self._plain(name, found)
        return self._registered(name)

    def _plain(self, name: str, value: Any) -> Any:
        tracer = self._standing[0]
        if name == "_modules":
            tracer.listings[id(value)] = (value, tuple(value.items()))
            return {key: child and tracer.stand_in(tracer.guard(value, key)) for key, child in value.items()}
        if is_simple(value) or isinstance(value, (enum.Enum, type, types.FunctionType, types.BuiltinFunctionType)):
            return value
        return tracer.refuse(f"reads its attribute {name}, a {type(value).__name__}")

    def _registered(self, name: str) -> Any:
        tracer, module, path = self._standing
        child = tracer.guard(module._modules, name)
        if child is not MISSING:
            return None if child is None else tracer.stand_in(child)
        for tensors in (module._parameters, module._buffers):
            if name in tensors:
                if tensors[name] is None:
                    return tracer.guard(tensors, name)
                tracer.present[id(tensors), name] = (tensors, name)
                full = f"{path}.{name}" if path else name
                return tracer.create_proxy("get_attr", full, (), {})
        return tracer.refuse(f"reads an attribute {name} that it does not have")


def _special(name: str) -> Callable[..., Any]:
    def method(self: StandIn, *args: Any) -> Any:
        return self.__getattr__(name)(*args)

    return method


for _name in ("__iter__", "__len__", "__getitem__", "__contains__"):
    setattr(StandIn, _name, _special(_name))

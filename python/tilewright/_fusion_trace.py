"""Traces what a module's forward does with its children, by torch.fx's proxies, or refuses where a graph could differ.

torch.fx's own tracer believes what it sees: it loses in-place operators, contexts such as no_grad, side effects and
the draws of random numbers, takes isinstance(x, Tensor) for False, and patches torch.nn.Module for all threads
meanwhile. Here forward runs on a stand-in for its module instead:

- children are leaves: calling one writes call_module, whatever it is;
- every attribute that forward reads becomes a guard, (dictionary, name, value): the graph holds while all of them do;
- whatever else it could decide by or change is refused: Python code that writes attributes or globals, enters
  contexts or handles exceptions, calls of C functions without a proxy (their results would be constants), and tensors
  that are neither arguments, parameters nor buffers.
"""

import gc
import sys
import threading
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer
from torch.overrides import TorchFunctionMode

from ._fusion_purity import allowed_call, is_users, trusted_callee, why_defaults, why_impure
from ._fusion_values import MISSING, StandIn, Value

TENSOR: Any = type("TENSOR", (), {"__repr__": lambda self: "(tensor)"})()  # where a call's argument is a tensor
_TRACING = threading.Lock()
Guard = tuple[Any, str, Any]  # mapping, key, the very object that it held (MISSING: none)
Listing = tuple[dict[str, Any], tuple[tuple[str, Any], ...]]  # a dictionary of children and all that it held


class UntraceableError(Exception):
    """Why a forward has no graph."""


@dataclass
class Traced:
    """The graph of one forward, the modules that it calls by path, and what has to stay for the graph to hold."""

    graph: fx.Graph
    modules: dict[str, torch.nn.Module]
    guards: list[Guard]
    listings: list[Listing]
    present: list[tuple[Any, str]]  # mapping and name of tensors that are not None, whichever they are
    reads_device: bool


def trace(
    module: torch.nn.Module,
    forward: Callable[..., Any],
    arguments: Sequence[Any],
    keywords: dict[str, Any],
    device: torch.device,
) -> Traced:
    """The graph of forward(module, *arguments, **keywords), whose tensors are TENSOR and lie on device.

    Raises:
        UntraceableError: with the reason.
    """
    # In a thread of its own: a profiler, modes and contexts of this one stay out of it, and it out of them. Without
    # garbage collection, which would run other objects' finalizers as if forward had called them.
    with _TRACING:
        collects = gc.isenabled()
        gc.disable()
        try:
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(_trace, module, forward, arguments, keywords, device).result()
        finally:
            if collects:
                gc.enable()


def _trace(module: Any, forward: Any, arguments: Sequence[Any], keywords: dict[str, Any], device: Any) -> Traced:
    tracer = _Tracer(module, device)
    reason = why_defaults(forward)
    if reason:
        raise UntraceableError(reason)

    def given(value: Any) -> Any:
        if value is TENSOR:
            return tracer.create_proxy("placeholder", f"tensor{len(tracer.graph.nodes)}", (), {})
        return value

    try:
        values = [given(value) for value in arguments]
        by_name = {name: given(value) for name, value in keywords.items()}
        with _Refusing(tracer):
            sys.setprofile(tracer.watch)
            try:
                result = forward(tracer.stand_in(module), *values, **by_name)
            finally:
                sys.setprofile(None)
        tracer.graph.output(tracer.create_arg(result))
    except Exception as error:
        raise UntraceableError(tracer.reason or f"{type(error).__name__}: {error}".splitlines()[0]) from error
    if tracer.reason:  # raised, and caught by forward
        raise UntraceableError(tracer.reason)
    return Traced(
        tracer.graph,
        tracer.modules,
        list(tracer.guards.values()),
        list(tracer.listings.values()),
        list(tracer.present.values()),
        tracer.reads_device,
    )


def _module_name(frame: types.FrameType | None) -> str:
    return frame.f_globals.get("__name__", "") if frame else ""


def _beyond_ours(frame: types.FrameType | None) -> types.FrameType | None:
    """The code that a stand-in or value is asked by, or None: nothing but the trace itself."""
    while frame is not None and _module_name(frame).startswith("tilewright._fusion"):
        frame = None if frame.f_code is _trace.__code__ else frame.f_back
    return frame


def _below_torch(frame: types.FrameType | None) -> bool:
    """Whether torch's own code called this, as it records something."""
    while frame is not None and frame.f_code is not _trace.__code__:
        name = _module_name(frame)
        if not is_users(name) and not name.startswith("tilewright._fusion"):
            return True
        frame = frame.f_back
    return False


class _Tracer(GraphAppendingTracer):
    def __init__(self, root: torch.nn.Module, device: torch.device) -> None:
        super().__init__(fx.Graph())
        self.root = root
        self.device = device
        self.reads_device = False
        self.reason = ""
        self.guards: dict[tuple[int, str], Guard] = {}
        self.listings: dict[int, Listing] = {}
        self.present: dict[tuple[int, str], tuple[Any, str]] = {}
        self.modules: dict[str, torch.nn.Module] = {}
        self._paths = {m: name for name, m in root.named_modules()}
        self._stand_ins: dict[torch.nn.Module, StandIn] = {}

    def refuse(self, reason: str) -> NoReturn:
        self.reason = self.reason or reason
        raise UntraceableError(reason)

    def guard(self, mapping: Any, name: str) -> Any:
        """The value of mapping[name], or MISSING, which from now on the graph depends on."""
        key = (id(mapping), name)
        if key not in self.guards:
            self.guards[key] = (mapping, name, mapping.get(name, MISSING))
        return self.guards[key][2]

    def stand_in(self, module: torch.nn.Module) -> "StandIn":
        if module not in self._paths:
            self.refuse(f"uses a {type(module).__name__} that is not inside the module")
        if module not in self._stand_ins:
            parent = self.root
            for part in filter(None, self._paths[module].split(".")):  # the way that the graph takes to it
                parent = self.guard(parent._modules, part)
            self._stand_ins[module] = StandIn(self, module, self._paths[module])
        return self._stand_ins[module]

    def watch(self, frame: types.FrameType, event: str, function: Any) -> None:
        """What sys.setprofile calls: looks at all Python code of the user's, and at what that calls."""
        if event not in ("call", "c_call"):
            return
        name = _module_name(frame)
        if event == "call":
            if _below_torch(frame.f_back):
                return
            if is_users(name):
                reason = why_impure(frame, self.guard)
                if reason:
                    self.refuse(f"{frame.f_code.co_name} {reason}")
            elif is_users(_module_name(_beyond_ours(frame.f_back))) and not trusted_callee(name):
                self.refuse(f"calls {name}.{frame.f_code.co_name}")
        elif is_users(name) and not allowed_call(function) and not _below_torch(frame):
            self.refuse(f"calls {getattr(function, '__qualname__', function)}")

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Value(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if type(a) is StandIn or isinstance(a, (torch.Tensor, torch.nn.Module)):
            self.refuse(f"hands a {type(a).__name__} that is no argument to a function")
        return super().create_arg(a)

    def to_bool(self, obj: fx.Proxy) -> NoReturn:
        self.refuse("decides by a tensor's value or shape")

    def iter(self, obj: fx.Proxy) -> NoReturn:
        self.refuse("iterates over a tensor")

    def keys(self, obj: fx.Proxy) -> NoReturn:
        self.refuse("takes the keys of a value")


class _Refusing(TorchFunctionMode):
    """Lets torch's functions of proxies be recorded and refuses all others: they would run now, and only once."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(issubclass(kind, fx.Proxy) for kind in types):
            self._tracer.refuse(f"calls {getattr(func, '__name__', func)} without a tensor of its arguments")
        return func(*args, **(kwargs or {}))

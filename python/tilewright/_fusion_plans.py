"""Plans: how a module runs fused, what has to be so for that, and which plan a call gets.

A plan is a function made from the traced and rewritten graph of the module's own forward. It runs where all that it was
traced under holds; what tracing can not see is refused there (_fusion_trace.py), what it saw is compared at every call:

- the signature of the call: which arguments are tensors, and the values of all others;
- the attributes, children and globals that forward read, by identity;
- the layers that were fused: still of the same class, without hooks and with their own forward.

Plans live in the module's __dict__ in a box that copies and pickles as an empty one.
"""

import inspect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state
from torch._C._functorch import maybe_current_level
from torch.nn.modules import module as torch_module

from ._fold import Folds
from ._fusion_patterns import Fusion, rewrite
from ._fusion_trace import TENSOR, Guard, Listing, UntraceableError, trace
from ._fusion_values import MISSING

BOX = "_tilewright_plans"  # where a module's __dict__ holds its plans
_MOST_PLANS = 8  # of one module for calls with one tensor, and for all other calls; what goes beyond runs unfused
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_compiled_call_impl")
_SETTINGS: dict[type, tuple[str, ...]] = {torch.nn.Dropout: ("inplace",), torch.nn.ReLU6: ("min_val", "max_val")}
_NUMBERS = (type(None), bool, int, float, str)


@dataclass
class Plan:
    """One way to run a module, and what it depends on; run is None where the module's own forward is to run."""

    forward: Any
    device: torch.device | None = None
    guards: list[Guard] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    present: list[tuple[Any, str]] = field(default_factory=list)
    layers: list[tuple[torch.nn.Module, dict[str, Any], type]] = field(default_factory=list)
    fusions: list[Fusion] = field(default_factory=list)
    modules: dict[str, torch.nn.Module] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)  # paths of layers that are also called by themselves
    run: Callable[..., Any] | None = None
    reason: str = ""

    def holds(self, forward: Any, tensors: Sequence[Tensor]) -> bool:
        """Whether tracing now would give this plan again."""
        if forward is not self.forward:
            return False
        for mapping, name, value in self.guards:
            if mapping.get(name, MISSING) is not value:
                return False
        for mapping, items in self.listings:
            if tuple(mapping.items()) != items:
                return False
        for mapping, name in self.present:
            if mapping.get(name) is None:
                return False
        return self.device is None or all(t.device == self.device for t in tensors)

    def may_run(self) -> bool:
        """Whether the fused layers are as they were: nothing but their own forward is to run."""
        for layer, attributes, kind in self.layers:
            if type(layer) is not kind or "forward" in attributes:
                return False
            for hooks in _HOOKS:
                if attributes.get(hooks):
                    return False
        return True


class Folding(torch.nn.Module):
    """Part of the classes made for modules whose batch norms are to be folded into the convolutions before them."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own; the next call folds anew, which also finds what was written past version counters."""
        box = vars(self).get(BOX)
        if box is not None:
            box.folds.clear()
        return super().train(*args, **kwargs)


class _Box:
    """The plans of one module. A copy or a pickle of it is empty: what it holds is of that one object."""

    def __init__(self, owner: torch.nn.Module | None = None) -> None:
        self.owner = weakref.ref(owner) if owner is not None else None
        self.plans: dict[Any, list[Plan]] = {}
        self.made = 0
        self.folds = Folds()

    def __reduce__(self) -> Any:
        return (_Box, ())


def prepared(module: Any, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Sequence[Tensor]]:
    """What to run instead of forward, or None, and the tensors of the call."""
    if _get_tracing_state() or maybe_current_level() is not None or torch_module._has_any_global_hook():
        return None, ()
    tensors: Sequence[Any]
    if len(args) == 1 and not kwargs and type(args[0]) is Tensor and not args[0].is_nested:
        signature: Any = None
        tensors = args
    else:
        signature, tensors = _signature(args, kwargs)
        if signature is None:
            return None, ()
    attributes = vars(module)
    box = attributes.get(BOX)
    if box is None or box.owner is None or box.owner() is not module:
        if "_is_replica" in attributes:  # of DataParallel: lives for one call
            return None, ()
        box = attributes[BOX] = _Box(module)
    for plan in box.plans.get(signature, ()):
        if plan.holds(forward, tensors):
            break
    else:
        plan = _add_plan(module, box, forward, signature, args, kwargs, tensors[0].device if tensors else None)
    return (plan.run, tensors) if plan.run is not None and plan.may_run() else (None, ())


def _signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Tensor]]:
    """What plans of a call are kept by, and its tensors; None where an argument is of another kind."""
    tensors: list[Tensor] = []
    parts: list[Any] = [len(args), *kwargs]
    for value in (*args, *kwargs.values()):
        kind = type(value)
        if kind is Tensor or kind is torch.nn.Parameter:
            if value.is_nested or any(value is other for other in tensors):
                return None, []
            tensors.append(value)
            parts.append(TENSOR)
        elif kind in _NUMBERS:
            parts += (kind, repr(value) if kind is float else value)
        else:
            return None, []
    return tuple(parts), tensors


def _add_plan(
    module: Any, box: _Box, forward: Any, signature: Any, args: Any, kwargs: Any, device: torch.device | None
) -> Plan:
    """Make the plan of this call and keep it; beyond _MOST_PLANS, one that runs the module's own forward."""
    children = set(module.modules())  # plans of others hold for nothing any more, and hold those alive
    for known in box.plans.values():
        known[:] = [plan for plan in known if children.issuperset(plan.modules.values())]
    box.folds.keep(children)
    plans = box.plans.setdefault(signature, [])
    others = sum(map(len, box.plans.values())) - len(box.plans.get(None, ()))
    if (len(plans) if signature is None else others) >= _MOST_PLANS or box.made >= 8 * _MOST_PLANS:
        return Plan(forward)
    box.made += 1
    positional = [TENSOR if isinstance(value, Tensor) else value for value in args]
    by_name = {name: TENSOR if isinstance(value, Tensor) else value for name, value in kwargs.items()}
    fold = isinstance(module, Folding)
    plan = _make_plan(module, forward, positional, by_name, device or torch.device("cpu"), fold)
    plans.append(plan)
    return plan


def _make_plan(
    module: torch.nn.Module, forward: Any, args: Sequence[Any], kwargs: dict[str, Any], device: torch.device, fold: bool
) -> Plan:
    try:
        traced = trace(module, getattr(forward, "tilewright_traced", forward), args, kwargs, device)
    except UntraceableError as error:
        return Plan(forward, reason=str(error))
    graph, modules = traced.graph, traced.modules
    plan = Plan(forward, device if traced.reads_device else None, traced.guards, traced.listings, traced.present)
    plan.fusions, plan.modules = rewrite(graph, modules, f"{BOX}.folds" if fold else None), modules
    if not plan.fusions:
        plan.reason = "no neighbours of a kind that fuses"
        return plan
    paths = dict.fromkeys(path for fusion in plan.fusions for path in fusion.modules)
    plan.layers = [(modules[path], vars(modules[path]), type(modules[path])) for path in paths]
    plan.alone = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    for kind, settings in _SETTINGS.items():
        fused = [layer for layer, _, _ in plan.layers if isinstance(layer, kind)]
        plan.guards += [(vars(layer), name, vars(layer)[name]) for layer in fused for name in settings]
    code = graph.python_code("self")
    namespace = dict(code.globals)
    try:
        exec(compile(code.src, f"<tilewright's fused {type(module).__name__}>", "exec"), namespace)
    except SyntaxError as error:  # a constant that torch.fx can not write as code
        return Plan(forward, reason=f"its graph is no code: {error.text}")
    plan.run = namespace["forward"]
    return plan


def plan_of_plain_call(module: torch.nn.Module, forward: Callable[..., Any], fold: bool) -> Plan:
    """The plan where all required arguments of forward, the module's own, are tensors and all others left out.

    fold: with batch norms folded into the convolutions before them.
    """
    try:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError) as error:
        return Plan(forward, reason=str(error))
    required = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if not required or any(p.default is p.empty and p.kind is p.KEYWORD_ONLY for p in parameters):
        return Plan(forward, reason="its forward takes no tensors, or none by position")
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return _make_plan(module, forward, [TENSOR] * len(required), {}, device, fold)

"""Composite modules (a residual block, an encoder layer) whose neighbouring layers are fused.

A module that has something to fuse is given a class of its own, as layers are: made from its class, with another
forward, which runs the plan for the call if there is one (_fusion_plans.py) and the module's own forward if not.
"""

import functools
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from . import nn
from ._fusion_plans import BOX, Folding, Plan, plan_of_plain_call, prepared
from ._layers import AcceleratedSubclass, original_class, original_type, replacement, supported_base

NOTHING = "nothing in it could be fused"
_FUSABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.Dropout)
_CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)
_NOT_COMPOSITES = (
    torch.jit.ScriptModule,
    torch.fx.GraphModule,
    DataParallel,
    DistributedDataParallel,
)
_MADE: dict[tuple[type[torch.nn.Module], bool], type[torch.nn.Module]] = {}  # class, folding? -> the one made of it


class Fused(AcceleratedSubclass):
    """Part of the classes made for composite modules."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if len(reduced) > 2 and isinstance(reduced[2], dict) and BOX in reduced[2]:
            state = {name: value for name, value in reduced[2].items() if name != BOX}
            return (*reduced[:2], state, *reduced[3:])
        return reduced

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script asks for: the module of the user's class, or what that makes of it."""
        unfuse(typing.cast(torch.nn.Module, self))
        prepare = getattr(self, "__prepare_scriptable__", None)
        return prepare() if prepare else self


def fuse(module: torch.nn.Module, fold: bool = False) -> Plan:
    """Let a module run fused from now on, where its forward can be traced and holds something to fuse.

    Args:
        module: any; may be fused already, and is then fused anew where only fold was not asked for before.
        fold: also fold batch norms into the convolutions before them.

    Returns:
        What its plain call fuses (.fusions), or nothing and the .reason.
    """
    reason = why_not_composite(module, fold)
    if reason:
        return Plan(None, reason=reason)
    plan = plan_of_plain_call(module, _own_forward(module), fold)
    if plan.run:
        unfuse(module)
        module.__class__ = _fused_class(type(module), fold)
    return plan


def unfuse(module: torch.nn.Module) -> None:
    """Give a module back the class and the attributes that it had before fuse."""
    vars(module).pop(BOX, None)
    if isinstance(module, Fused) and original_type(module) is not type(module):
        own: Any = _unfused(module.tilewright_original)
        module.__class__ = own


def why_not_composite(module: torch.nn.Module, fold: bool = False) -> str | None:
    """Why fuse does not look at a module at all; None: it does."""
    kind = type(module)
    if isinstance(module, Fused) and (isinstance(module, Folding) or not fold or original_type(module) is kind):
        return "fused already"
    if isinstance(module, _NOT_COMPOSITES) or "forward" in vars(module):
        return "its forward is not that of its class"
    children = [] if kind in (torch.nn.ModuleList, torch.nn.ModuleDict) else list(module.children())
    inner = [grandchild for child in children if isinstance(child, _CONTAINERS) for grandchild in child.children()]
    if not any(type(child) in _FUSABLE for child in children + inner):
        return NOTHING
    if type(kind) is not type:
        return "its class has a metaclass"
    hook = next(c for c in kind.__mro__ if "__init_subclass__" in vars(c))
    return None if hook in (object, typing.Generic) else "its class wants to know of subclasses"


def fused_layers(module: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """The layers that a plain call of a fused module computes only as part of a fused op, with the op's kind."""
    if not isinstance(module, Fused):
        return []
    plan = plan_of_plain_call(module, _own_forward(module), isinstance(module, Folding))
    if plan.run is None or not plan.may_run():
        return []
    return [
        (plan.modules[path], fusion.kind)
        for fusion in plan.fusions
        for path in fusion.modules
        if path not in plan.alone
    ]


def _own_forward(module: torch.nn.Module) -> Callable[..., Any]:
    return (_unfused(module.tilewright_original) if isinstance(module, Fused) else type(module)).forward


def _fused_class(kind: type[torch.nn.Module], fold: bool) -> type[torch.nn.Module]:
    """The dispatching forward before the class of a composite; made once."""
    if (kind, fold) not in _MADE:
        members = {
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__doc__": kind.__doc__,
            "forward": _dispatching(kind),
            "tilewright_original": original_class(kind),
            "tilewright_new": staticmethod(_new_folding if fold else _new_fused),
        }
        bases = (Folding, Fused, kind) if fold else (Fused, kind)
        _MADE[kind, fold] = type(kind.__name__, bases, members)
    return _MADE[kind, fold]


def _unfused(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    return original if supported_base(original) is None else replacement(original)


def _new_fused(original: type[torch.nn.Module]) -> torch.nn.Module:
    """An empty object of the class made for a composite, for unpickling."""
    made = _fused_class(_unfused(original), fold=False)
    return made.__new__(made)


def _new_folding(original: type[torch.nn.Module]) -> torch.nn.Module:
    """As _new_fused, of a composite whose batch norms are folded."""
    made = _fused_class(_unfused(original), fold=True)
    return made.__new__(made)


def _dispatching(kind: type[torch.nn.Module]) -> Callable[..., Any]:
    @functools.wraps(kind.forward)
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            run, tensors = prepared(self, kind.forward, args, kwargs)
            if run is not None:
                return run(self, *tensors)
        return kind.forward(self, *args, **kwargs)

    return forward

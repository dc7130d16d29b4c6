"""Which modules tilewright can take over, which it leaves, and why. Looks only, changes nothing.

A layer is taken over by changing its class: the object stays, and with it parameters, buffers, hooks, flags, dtype,
device, ties and every reference to it. So a layer qualifies by its class: exactly a torch.nn type of REPLACEMENTS, or,
when the caller names it, a subclass that overrides nothing of what the replacement brings.
"""

import copyreg
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from . import nn

REPLACEMENTS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.Conv2d: nn.Conv2d,
    torch.nn.Linear: nn.Linear,
    torch.nn.LayerNorm: nn.LayerNorm,
    torch.nn.BatchNorm1d: nn.BatchNorm1d,
    torch.nn.BatchNorm2d: nn.BatchNorm2d,
    torch.nn.BatchNorm3d: nn.BatchNorm3d,
    torch.nn.Dropout: nn.Dropout,
    torch.nn.MultiheadAttention: nn.MultiheadAttention,
    torch.nn.TransformerEncoderLayer: nn.TransformerEncoderLayer,
}
_ORIGINALS = {ours: native for native, ours in REPLACEMENTS.items()}
_MADE: dict[type[torch.nn.Module], type[torch.nn.Module]] = {}  # user's subclass -> its accelerated class
_FUSED = (nn.LinearAct, nn.ConvAct2d, nn.BatchNormAct2d, nn.DropoutAdd, nn.DropoutAddLayerNorm)


def original_type(module: torch.nn.Module) -> type[torch.nn.Module]:
    """The class that restore gives back: module's own class unless accelerate changed it."""
    return original_class(type(module))


def original_class(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """The class that a class of accelerate's stands for; others stand for themselves."""
    made = vars(kind).get("tilewright_original")  # its own: a class derived from a made one is not undone
    return made or _ORIGINALS.get(kind, kind)


def supported_base(kind: type[torch.nn.Module]) -> type[torch.nn.Module] | None:
    """The torch.nn type of REPLACEMENTS that kind is or derives from."""
    return next((base for base in kind.__mro__ if base in REPLACEMENTS), None)


def overridden(kind: type[torch.nn.Module]) -> list[str]:
    """Methods of a supported type's subclass that its replacement would shadow; none: it can be replaced."""
    base = supported_base(kind)
    assert base is not None, kind
    brought = {"forward", *(name for name in vars(REPLACEMENTS[base]) if not name.startswith("__"))}
    own = kind.__mro__[: kind.__mro__.index(base)]
    return sorted({name for cls in own for name in vars(cls) if name in brought})


def replacement(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """The class that a module of this supported type, or of a subclass that overrides nothing, is given."""
    return REPLACEMENTS[kind] if kind in REPLACEMENTS else _accelerated_subclass(kind)


class AcceleratedSubclass:
    """Part of the classes made for users' subclasses; lets their objects be copied and pickled by the user's class."""

    tilewright_original: type[torch.nn.Module]
    tilewright_new: Callable[[type[torch.nn.Module]], torch.nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        constructor, arguments, *state = reduced
        if constructor is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return (constructor, arguments, *state)  # the user's own __reduce__ rules
        return (self.tilewright_new, (self.tilewright_original,), *state)


def _new_object(kind: type[torch.nn.Module]) -> torch.nn.Module:
    """An empty object of the class made for a user's subclass, for unpickling."""
    made = _accelerated_subclass(kind)
    return made.__new__(made)


def _accelerated_subclass(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """The replacement's methods before the user's class: an instance of both, and of the torch.nn type; made once."""
    if kind not in _MADE:
        base = supported_base(kind)
        assert base is not None, kind
        members: dict[str, Any] = {"__module__": kind.__module__, "__doc__": kind.__doc__, "tilewright_original": kind}
        members["tilewright_new"] = staticmethod(_new_object)
        _MADE[kind] = type(kind.__name__, (AcceleratedSubclass, REPLACEMENTS[base], kind), members)
    return _MADE[kind]


def is_accelerated(module: torch.nn.Module) -> bool:
    """Whether a tilewright layer computes this module."""
    return isinstance(module, (*_ORIGINALS, *_FUSED))


def is_derived(module: torch.nn.Module) -> bool:
    """Whether the class derives from one that accelerate gives, as parametrize makes them: restore can not undo it."""
    return isinstance(module, (*_ORIGINALS, AcceleratedSubclass)) and original_type(module) is type(module)


def why_left(module: torch.nn.Module) -> str | None:
    """Why accelerate leaves a native module that its arguments do not exclude; None where it would replace it."""
    kind = type(module)
    base = supported_base(kind)
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module: compiled already, its code is fixed"
    if isinstance(module, LazyModuleMixin):
        return "lazy: run one forward first, then accelerate"
    if base is None:
        return f"tilewright has no {kind.__name__}"
    if isinstance(module, torch.nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "its MultiheadAttention reads the weights and computes the product itself"
    if "forward" in vars(module):
        return "its forward was replaced on the object"
    if kind is base:
        return None
    if is_parametrized(module):
        return f"a parametrized {base.__name__}, its class made at run time: accelerate first, parametrize afterwards"
    names = overridden(kind)
    if names:
        return f"a subclass of {base.__name__} that overrides {', '.join(names)}"
    return f"a subclass of {base.__name__}: name its type in only= to replace it"

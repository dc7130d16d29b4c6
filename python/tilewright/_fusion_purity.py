"""Whether Python code that torch.fx's proxies run through can have done more than they recorded.

Code counts as the user's unless it is torch's or ours below the layers; torch.nn's layers count as the user's.
"""

import builtins
import dis
import math
import operator
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Attribute

_SIMPLE = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.memory_format, torch.Size)

# Instructions that write what outlives the call, enter contexts (which a graph does not), or handle exceptions (such as
# those that refuse a trace).
_FORBIDDEN = {
    "STORE_GLOBAL": "writes a global",
    "DELETE_GLOBAL": "deletes a global",
    "STORE_ATTR": "sets an attribute",
    "DELETE_ATTR": "deletes an attribute",
    "IMPORT_NAME": "imports",
    "BEFORE_WITH": "enters a context",
    "SETUP_WITH": "enters a context",
    "LOAD_SPECIAL": "enters a context",
    "PUSH_EXC_INFO": "handles exceptions",
    "SETUP_FINALLY": "handles exceptions",
    "GET_AWAITABLE": "is a coroutine",
}
_BUILTINS = {
    *("abs", "all", "any", "bool", "dict", "divmod", "enumerate", "filter", "float", "getattr", "int", "isinstance"),
    *("iter", "len", "list", "map", "max", "min", "next", "pow", "range", "reversed", "round", "set", "slice"),
    *("sorted", "str", "sum", "super", "tuple", "zip", "NotImplemented"),
    *(name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)),
}
_PURE_MODULES = {"builtins", "math", "_operator", "torch._C._nn", "torch._C._special", "torch._C._linalg"}
_PURE_OWNERS = (str, bytes, int, float, tuple, list, dict, set, frozenset, OrderedDict, types.MappingProxyType)
_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, staticmethod, classmethod, property)
_TRUSTED = ("torch", "torch.functional", "torch.nn.functional", "torch._tensor", "torch._jit_internal")
_TRUSTED_BELOW = ("torch.fx.", "torch.overrides", "tilewright._fusion", "tilewright.functional")


def is_simple(value: Any) -> bool:
    """Whether value never changes and can be compared by identity."""
    if type(value) is tuple:
        return all(is_simple(item) for item in value)
    return isinstance(value, _SIMPLE)


def is_users(module_name: str) -> bool:
    """Whether code of this Python module may be anything."""
    if module_name.startswith(("torch.nn.modules.", "tilewright.nn.")):
        return True
    return module_name.partition(".")[0] not in ("torch", "tilewright")


def trusted_callee(module_name: str) -> bool:
    """Whether functions of this torch or tilewright module either are recorded or have no effect."""
    return module_name in _TRUSTED or module_name.startswith(_TRUSTED_BELOW)


def allowed_call(function: Any) -> bool:
    """Whether a C function that the user's code calls either is recorded or has no effect beyond its arguments."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, types.ModuleType):
        return owner.__name__ in _PURE_MODULES
    if owner is None or isinstance(owner, type):
        name = getattr(function, "__name__", "")
        recorded = getattr(torch._C._VariableFunctions, name, None), getattr(torch.Tensor, name, None)
        return function in recorded or function is object.__new__
    return isinstance(owner, _PURE_OWNERS)


def why_impure(frame: types.FrameType, guard: Callable[[Any, str], Any]) -> str | None:
    """Why a call of the user's can not be proved to do only what is recorded; None: it can.

    guard(mapping, name) notes that what it found in globals has to stay.
    """
    code = frame.f_code
    if "__class__" in code.co_names and not frame.f_globals.get("__name__", "").startswith("torch."):
        return "reads its class"
    instructions = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "EXTENDED_ARG")]
    for position, instruction in enumerate(instructions):
        name = instruction.opname
        if name in _FORBIDDEN:
            return _FORBIDDEN[name]
        if name == "STORE_DEREF" and instruction.argval not in code.co_cellvars:
            return "writes a variable of the function around it"
        if name == "IS_OP" or name.endswith(("_NONE", "_NOT_NONE")):
            reason = _why_identity(frame, instructions[:position], name == "IS_OP")
            if reason:
                return reason
        if name in ("LOAD_GLOBAL", "LOAD_NAME"):
            reason = _why_global(frame, instruction.argval, guard)
            if reason:
                return reason
    return next((reason for name in code.co_freevars if (reason := _why_free(frame, name))), None)


def _why_identity(frame: types.FrameType, before: list[dis.Instruction], constant: bool) -> str | None:
    """Whether "x is None" may be decided while tracing: of an argument that is one of the caller's or a constant, or of
    an attribute of a module that is one. What a step of the graph gives may be None, and no proxy is."""
    if constant:
        last = before.pop()
        if last.opname != "LOAD_CONST" or last.argval not in (None, True, False):
            return "compares objects by identity"
    attributes = 0
    while before and before[-1].opname == "LOAD_ATTR":
        before.pop()
        attributes += 1
    name = before[-1].argval if before and before[-1].opname.startswith("LOAD_FAST") else None
    code = frame.f_code
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    stored = any(i.opname.startswith(("STORE_", "DELETE_")) and i.argval == name for i in dis.get_instructions(code))
    if not isinstance(name, str) or name not in arguments or stored:
        return "asks whether something computed is None"
    value = frame.f_locals[name]
    if issubclass(type(value), fx.Proxy):
        given = not issubclass(type(value), Attribute) and value.node.op in ("placeholder", "get_attr")
        return None if given and not attributes else "asks whether something computed is None"
    return None


def _why_global(frame: types.FrameType, name: str, guard: Callable[[Any, str], Any]) -> str | None:
    variables = frame.f_globals
    if name not in variables:
        return None if name in _BUILTINS else f"uses {name}"
    value = variables[name]
    if value in (math, operator, torch.nn.functional):
        return None
    if isinstance(value, (types.ModuleType, type, types.FunctionType)):
        if not isinstance(value, types.ModuleType):
            guard(variables, name)
        return _why_settings(frame, value) or why_defaults(value)
    if is_simple(value) or isinstance(value, types.BuiltinFunctionType):
        guard(variables, name)
        return None
    return f"reads the global {name}"


def _why_settings(frame: types.FrameType, holder: Any) -> str | None:
    """Functions of a module, methods of a class are looked at when they are called; what else they hold can not be."""
    names = frame.f_code.co_names
    if getattr(holder, "__module__", holder.__name__).partition(".")[0] == "torch":
        return "reads torch.backends" if "backends" in names else None
    for name in names:
        value = vars(holder).get(name)
        if value is not None and not isinstance(value, _CODE):
            return f"reads {holder.__name__}.{name}"
    return None


def why_defaults(function: Any) -> str | None:
    """Default values that calls could write into."""
    if not isinstance(function, types.FunctionType):
        return None
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    plain = all(is_simple(value) or isinstance(value, _CODE) for value in defaults)
    return None if plain else f"calls {function.__name__}, whose default arguments can change"


def _why_free(frame: types.FrameType, name: str) -> str | None:
    """A variable of the function around: that function is being traced too, or the variable is as good as a global."""
    around = frame.f_back
    if around is not None and (name in around.f_code.co_cellvars or name in around.f_code.co_freevars):
        return None
    if name == "__class__" or isinstance(frame.f_locals.get(name), (type, types.FunctionType, types.ModuleType)):
        return None
    return f"reads {name} of the function around it"

"""The only= and skip= arguments of accelerate: types and names of layers, checked, then asked about each module.

An entry selects modules and everything inside them: a type selects modules of exactly that type, a name the module that
named_modules() gives that name, a pattern (*, ?, [...]) every module whose name it matches.
"""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch

from ._layers import original_type, overridden, supported_base

Entry = type[torch.nn.Module] | str
Entries = Entry | Iterable[Entry] | None


class Selection:
    """The modules of one model that a list of types and names selects."""

    def __init__(self, argument: str, entries: Entries, modules: dict[str, torch.nn.Module]) -> None:
        """Check entries; modules maps every qualified name to its module.

        Raises:
            TypeError: an entry is neither a torch.nn.Module type nor a str.
            ValueError: a name or pattern matches no module.
        """
        self.argument = argument
        self.entries = _as_entries(argument, entries)
        self._modules = modules
        for entry in self.entries:
            if isinstance(entry, str) and not any(_matches(entry, name, modules[name]) for name in modules):
                close = difflib.get_close_matches(entry, modules, n=1)
                hint = (
                    f"did you mean {close[0]!r}?" if close else "names are those of named_modules(); '*.fc' matches any"
                )
                raise ValueError(
                    f"accelerate(): {argument} names {entry!r}, which no module of the model is called; {hint}"
                )

    def holds(self, name: str) -> bool:
        """Whether the module called name, or one around it, is selected."""
        parts = name.split(".")
        around = ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))] if name else [""]
        return any(_matches(entry, outer, self._modules[outer]) for entry in self.entries for outer in around)

    def named_subclasses(self) -> set[type[torch.nn.Module]]:
        """The users' subclasses of supported types among the entries.

        Raises:
            ValueError: one overrides what its replacement would bring.
        """
        named = set()
        for entry in self.entries:
            if isinstance(entry, str):
                continue
            base = supported_base(entry)
            if base is None or base is entry:
                continue
            if overridden(entry):
                raise ValueError(
                    f"accelerate(): {self.argument} names {entry.__name__}, a subclass of {base.__name__} that "
                    f"overrides {', '.join(overridden(entry))}: tilewright's layer would not run the overriding code"
                )
            named.add(entry)
        return named

    def refuse_pointless(self) -> None:
        """Raise ValueError for a type without a replacement that holds no supported layer in this model either."""
        for entry in self.entries:
            if isinstance(entry, str) or supported_base(entry) is not None:
                continue
            alone = Selection(self.argument, entry, self._modules)
            if not any(alone.holds(name) and supported_base(type(m)) is not None for name, m in self._modules.items()):
                raise ValueError(
                    f"accelerate(): {self.argument} names {entry.__name__}, which tilewright does not replace and "
                    "which holds no layer in this model that it replaces"
                )


def _as_entries(argument: str, entries: Entries) -> list[Entry]:
    if entries is None:
        return []
    listed: list[object] = (
        [entries] if isinstance(entries, (str, type)) or not isinstance(entries, Iterable) else [*entries]
    )
    checked: list[Entry] = []
    for entry in listed:
        if isinstance(entry, str) or (isinstance(entry, type) and issubclass(entry, torch.nn.Module)):
            checked.append(entry)
        else:
            raise TypeError(f"accelerate(): {argument} must hold torch.nn.Module types or module names, got {entry!r}")
    return checked


def _matches(entry: Entry, name: str, module: torch.nn.Module) -> bool:
    if isinstance(entry, str):
        return fnmatchcase(name, entry)
    return original_type(module) is entry

"""What accelerate did to a model: one row per layer, printable as a table."""

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ._fusion import fused_layers
from ._layers import is_accelerated, original_type, supported_base, why_left

_WIDTH = 100  # columns


@dataclass(frozen=True)
class SummaryRow:
    """One layer: its qualified name, torch type, whether tilewright computes it, else why not, and in which op."""

    name: str
    type: str
    accelerated: bool
    reason: str
    fused: str = ""


@dataclass(frozen=True)
class Summary:
    """The rows of a model. Printing shows a table that groups equal rows; iterating gives them one by one."""

    rows: tuple[SummaryRow, ...]

    @property
    def replaced(self) -> tuple[SummaryRow, ...]:
        """The layers that tilewright computes."""
        return tuple(row for row in self.rows if row.accelerated)

    @property
    def left(self) -> tuple[SummaryRow, ...]:
        """The layers that native PyTorch computes."""
        return tuple(row for row in self.rows if not row.accelerated)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain rows, for json."""
        return [asdict(row) for row in self.rows]

    def __iter__(self) -> Iterator[SummaryRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        groups: dict[tuple[str, bool, str, str], list[str]] = {}
        for row in sorted(self.rows, key=lambda row: not row.accelerated):
            groups.setdefault((row.type, row.accelerated, row.fused, row.reason), []).append(row.name)
        table = Table(title=f"{len(self.replaced)} of {len(self.rows)} layers on tilewright", title_justify="left")
        for heading in ("layer", "count", "on", "first", "fused as", "why left"):
            table.add_column(heading, justify="right" if heading == "count" else "left", overflow="fold")
        for (kind, accelerated, fused, reason), names in groups.items():
            on = "tilewright" if accelerated else "native"
            table.add_row(kind, str(len(names)), on, names[0] or "(the model)", fused, reason)
        text = io.StringIO()
        Console(file=text, width=_WIDTH, color_system=None).print(table)
        return text.getvalue().rstrip()


def summary(model: torch.nn.Module) -> Summary:
    """Say which layers of a model tilewright computes, which native PyTorch does, and why.

    Listed are the modules that compute by themselves: those of a supported type, and all others without submodules or
    with parameters of their own. A module used in several places is listed once.

    Args:
        model: any module, before or after :func:`tilewright.accelerate`.

    Returns:
        Summary: ``.rows``, ``.replaced`` and ``.left`` hold SummaryRow(name, type, accelerated, reason, fused); fused
            names the op that computes the layer together with its neighbours ("BatchNorm + add + ReLU") in a plain call
            of the module around it, if one does; with "Conv2d" in front, in evaluation.

    Raises:
        TypeError: model is not a torch.nn.Module.

    Example:
        >>> model = tilewright.accelerate(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GRU(8, 8)))
        >>> [(row.name, row.accelerated) for row in tilewright.summary(model)]
        [('0', True), ('1', False)]
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"summary(): model must be a torch.nn.Module, got {type(model).__name__}")
    fused = _fused_as(model)
    return Summary(
        tuple(
            _row(name, module, fused.get(module, ""))
            for name, module in model.named_modules()
            if _computes(name, module)
        )
    )


def _fused_as(model: torch.nn.Module) -> dict[torch.nn.Module, str]:
    """For layers that some fused op swallows, and that no graph calls by themselves: its kind."""
    fused: dict[torch.nn.Module, str] = {}
    for module in model.modules():
        for layer, kind in fused_layers(module):
            fused.setdefault(layer, kind)
    return fused


def _computes(name: str, module: torch.nn.Module) -> bool:
    if ".parametrizations." in f".{name}":
        return False  # part of the parametrized layer, which has its own row
    leaf = next(module.children(), None) is None
    return leaf or supported_base(type(module)) is not None or bool(module._parameters)


def _row(name: str, module: torch.nn.Module, fused: str) -> SummaryRow:
    accelerated = bool(fused) or (is_accelerated(module) and "forward" not in vars(module))
    reason = "" if accelerated else why_left(module) or "not chosen: accelerate() was not asked to replace it"
    return SummaryRow(name, original_type(module).__name__, accelerated, reason, fused)

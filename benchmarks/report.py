"""Tables for people: per op on the console, and summary.md with one line per group.

A group is a form, a dtype and a direction (the tiny calls of bench_overhead are one group); its figure is the
geometric mean of the ratios, its worst the lowest single case. Cases that name their kind or network are grouped by
these once more.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import results
from .results import NATIVE, Row

# What a group is divided by, and its title; a case that leaves the field empty is in the undivided group only.
PARTS = {"kind": "by kind of case", "network": "by network"}


@dataclass(frozen=True)
class Group:
    """The cases of one form, dtype and direction, or of a part of them."""

    name: str
    op: str
    geomean: float
    worst: Row
    roofline: float  # median share
    copies: float  # median, 0 where memory is not the limit
    cases: int


def groups(rows: Iterable[Row], part: str = "") -> list[Group]:
    """Groups of the rows that have a time, in order of appearance; divided by a field of PARTS where one is named."""
    members: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        value = getattr(row, part) if part else ""
        if row.ok and (value or not part):
            form = row.op if row.op == "overhead" else row.form
            name = f"{form} {row.dtype} {row.direction}" + (f": {value}" if value else "")
            members.setdefault((row.op, name), []).append(row)
    return [
        Group(
            name=name,
            op=op,
            geomean=math.exp(statistics.fmean(math.log(row.ratio) for row in group)),
            worst=min(group, key=lambda row: row.ratio),
            roofline=statistics.median(row.roofline for row in group),
            copies=statistics.median([row.copies for row in group if row.copies] or [0]),
            cases=len(group),
        )
        for (op, name), group in members.items()
    ]


def _time(milliseconds: float) -> str:
    if milliseconds < 0.1:
        return f"{milliseconds * 1e3:.3g} us"
    return f"{milliseconds:.3g} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"


def _saved_share(native: int, ours: int) -> str:
    return f"{ours / native:.1%}" if native else "more"


def size_name(nbytes: float) -> str:
    """1536 -> 1.5 KB."""
    for unit in ("B", "KB", "MB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} GB"


def _colour(ratio: float) -> str:
    return "green" if ratio >= 1.1 else "red" if ratio < 0.97 else "yellow"


def case_name(row: Row) -> str:
    """The case without its op, dtype and direction."""
    layout = "" if row.layout == "contiguous" else f" {row.layout}"
    return f"{row.form} {row.shape}{layout}"


def _worst_name(group: Group) -> str:
    """Within a group the form is known, except among the tiny calls."""
    name = case_name(group.worst)
    return name if group.op == "overhead" else name.removeprefix(f"{group.worst.form} ")


def _table(title: str) -> Table:
    return Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False, collapse_padding=True)


def op_table(op: str, rows: Sequence[Row]) -> Table:
    """Every case of an op; fits 100 columns.

    limit: our share of what the machine allows. copies: our time in those of a copy of the first operand, where memory
    is the limit. saved: what is kept for backward, as a share of native's, where it differs.
    """
    comparator = rows[0].comparator
    table = _table(f"{op}, {rows[0].threads} threads, {rows[0].isa}")
    table.add_column("case", overflow="fold", max_width=31)
    table.add_column("type")
    table.add_column("pass")
    for heading in (comparator, "ours", "ratio", "rate", "limit", "copies", "saved"):
        table.add_column(heading, justify="right")
    for row in rows:
        if not row.ok:
            table.add_row(escape(case_name(row)), row.dtype, row.direction, "[bold red]FAILED[/]", *[""] * 6)
            continue
        table.add_row(
            escape(case_name(row)),
            row.dtype,
            row.direction,
            _time(row.native_ms),
            _time(row.ours_ms),
            f"[{_colour(row.ratio)}]{row.ratio:.2f}x[/]",
            f"{row.rate:.3g} {row.unit.replace('FLOP', 'F')}",
            f"{row.roofline:.0%}",
            f"{row.copies:.1f}" if row.copies else "",
            _saved_share(row.saved_native, row.saved_ours) if row.saved_ours != row.saved_native else "",
        )
    return table


def group_table(rows: Sequence[Row], part: str = "") -> Table:
    """One line per group."""
    table = _table(f"ratio {rows[0].comparator}/ours {PARTS.get(part, 'by group')}")
    table.add_column("group", overflow="fold", max_width=45)
    for heading in ("cases", "geomean", "worst"):
        table.add_column(heading, justify="right")
    table.add_column("worst case", overflow="fold", max_width=30)
    for group in groups(rows, part):
        worst = group.worst.ratio
        table.add_row(
            escape(group.name),
            str(group.cases),
            f"[{_colour(group.geomean)}]{group.geomean:.2f}x[/]",
            f"[{_colour(worst)}]{worst:.2f}x[/]",
            escape(_worst_name(group)),
        )
    return table


def show(rows: Sequence[Row], console: Console) -> None:
    """Tables of one run."""
    for op in dict.fromkeys(row.op for row in rows):
        console.print(op_table(op, [row for row in rows if row.op == op]))
    for part in ("", *PARTS):
        if groups(rows, part):
            console.print(group_table(rows, part))
    for row in rows:
        if not row.ok:
            console.print(
                f"[bold red]FAILED[/] {escape(f'{case_name(row)} {row.dtype} {row.direction}: {row.status[8:]}')}"
            )


def _markdown_table(rows: Sequence[Row], part: str = "") -> list[str]:
    lines = [
        "| group | cases | geomean | worst | worst case | share of limit (median) | times a copy (median) |",
        "|---|--:|--:|--:|---|--:|--:|",
    ]
    for group in groups(rows, part):
        worst = group.worst
        lines.append(
            f"| {group.name} | {group.cases} | **{group.geomean:.2f}x** | {worst.ratio:.2f}x "
            f"| {_worst_name(group)} | {group.roofline:.0%} "
            f"| {f'{group.copies:.1f}' if group.copies and group.op != 'overhead' else ''} |"
        )
    return lines


def _saved_table(rows: Sequence[Row]) -> list[str]:
    """A line per function, layout and type where the two sides keep different amounts; none where nothing differs."""
    members: dict[str, list[Row]] = {}
    for row in rows:
        if row.saved_native >= 0 and row.op != "overhead":
            layout = "" if row.layout == "contiguous" else f" {row.layout}"
            members.setdefault(f"{row.form}{layout} {row.dtype}", []).append(row)
    lines = ["| function | cases | native | ours | ours / native | most |", "|---|--:|--:|--:|--:|--:|"]
    for name, group in members.items():
        if all(row.saved_native == row.saved_ours for row in group):
            continue
        native, ours = sum(row.saved_native for row in group), sum(row.saved_ours for row in group)
        most = max(group, key=lambda row: row.saved_ours / max(row.saved_native, 1))
        lines.append(
            f"| {name} | {len(group)} | {size_name(native)} | {size_name(ours)} | {_saved_share(native, ours)} "
            f"| {_saved_share(most.saved_native, most.saved_ours)} ({most.shape}) |"
        )
    return lines if len(lines) > 2 else []


def write_summary(folder: Path, models: Mapping[str, str]) -> None:
    """summary.md of everything measured on a machine, for README and for readers of the repository."""
    rows = [row for row in results.read_all(folder) if not row.size]
    if not rows:
        return
    stamp = max(rows, key=lambda row: row.date)
    peaks = {row.dtype: row.peak_gflops for row in rows if row.ok}
    lines = [
        f"# {stamp.machine}, {stamp.threads} threads, {stamp.isa}",
        "",
        f"torch {stamp.torch}, tilewright {stamp.tilewright}, {stamp.date} UTC. "
        "Ratio = native time / ours, measured in turn in one process.",
        "Multiply-add peak: " + ", ".join(f"{dtype} {peak:.0f} GFLOP/s" for dtype, peak in peaks.items()) + ".",
        "",
        "![overview](overview.png)",
    ]
    titles = {NATIVE: "Against native PyTorch", "compile": "Fused forms against torch.compile"}
    titles["mkl-unlocked"] = "Appendix: against MKL with its vendor check answered (a yardstick)"
    for comparator, title in titles.items():
        chosen = [row for row in rows if row.comparator == comparator and row.ok]
        if chosen:
            lines += ["", f"## {title}", "", *_markdown_table(chosen)]
        for part, heading in PARTS.items():
            if groups(chosen, part):
                lines += ["", f"### {heading.capitalize()}", "", *_markdown_table(chosen, part)]
    table = _saved_table([row for row in rows if row.ok])
    if table:
        lines += ["", "## Saved for backward", ""]
        lines += [
            "Beside inputs and parameters, all cases of a function together; functions that keep as much are left out."
        ]
        lines += ["", *table]
    failed = [row for row in rows if not row.ok]
    if failed:
        lines += ["", "## FAILED", ""]
        lines += [f"- {case_name(row)} {row.dtype} {row.direction}: {row.status[8:]}" for row in failed]
    lines += ["", "## What is counted", "", *[f"- **{op}**: {text}" for op, text in models.items()]]
    (folder / "summary.md").write_text("\n".join(lines) + "\n")

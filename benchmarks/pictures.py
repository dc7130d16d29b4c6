"""Pictures from the CSVs: speed-up and share of the limit per case, an overview of the groups, and sweeps over size."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import report, results
from .cases import BYTES
from .results import NATIVE, Row

mpl.use("Agg")

_COLOURS = {"fwd": "#4c78a8", "fwd+bwd": "#f58518", "step": "#b279a2"}
_GREY, _OURS = "#9d9d9d", "#2a9d5c"


def _label(row: Row) -> str:
    return f"{report.case_name(row)} {row.dtype} {row.direction}"


def _tall(bars: int) -> Figure:
    return Figure(figsize=(9, 1.2 + 0.2 * bars), layout="constrained")


def _ratio_axis(axis: object, ratios: Sequence[float]) -> None:
    """A log axis with 1 (native) marked and numbers that people read."""
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256) if min(ratios) / 2 <= t <= max(ratios) * 2]
    axis.set_xscale("log")  # type: ignore[attr-defined]
    axis.set_xticks(ticks, [f"{t:g}x" for t in ticks])  # type: ignore[attr-defined]
    axis.minorticks_off()  # type: ignore[attr-defined]
    axis.axvline(1, color="black", linewidth=0.8)  # type: ignore[attr-defined]


def speedup(rows: Sequence[Row], title: str, path: Path) -> None:
    """A bar per case: native time / ours."""
    figure = _tall(len(rows))
    axis = figure.subplots()
    ratios = [row.ratio for row in rows]
    spread = [[r.ratio - r.ratio_p20 for r in rows], [r.ratio_p80 - r.ratio for r in rows]]
    axis.barh(
        [_label(row) for row in rows],
        [ratio - 1 for ratio in ratios],
        left=1,
        color=[_COLOURS[r.direction] for r in rows],
    )
    axis.errorbar(ratios, range(len(rows)), xerr=spread, fmt="none", ecolor="black", elinewidth=0.7)
    _ratio_axis(axis, ratios)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=7)
    axis.set_title(f"{title}: times faster than native (bars 20th to 80th percentile of the pairs)", fontsize=9)
    figure.savefig(path, dpi=110)


def share(rows: Sequence[Row], title: str, path: Path) -> None:
    """Share of the roofline per case: native's and ours."""
    figure = _tall(len(rows))
    axis = figure.subplots()
    places = range(len(rows))
    native = [row.roofline * row.ours_ms / row.native_ms for row in rows]
    ours = [row.roofline for row in rows]
    axis.hlines(places, native, ours, color="#cccccc", linewidth=2)
    axis.plot(native, places, "o", color=_GREY, label="native")
    axis.plot(ours, places, "o", color=_OURS, label="tilewright")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(list(places), [_label(row) for row in rows], fontsize=7)
    axis.set_xlim(0, max(1.05, *ours) * 1.02)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.invert_yaxis()
    axis.legend(loc="best", fontsize=8)
    axis.set_title(f"{title}: share of what the machine allows (multiply-add peak or copy bandwidth)", fontsize=9)
    figure.savefig(path, dpi=110)


def overview(rows: Sequence[Row], path: Path) -> None:
    """A bar per group: the geometric mean, and a tick at the worst case."""
    found = report.groups(rows)
    figure = _tall(len(found))
    axis = figure.subplots()
    means, worst = [group.geomean for group in found], [group.worst.ratio for group in found]
    axis.barh([group.name for group in found], [mean - 1 for mean in means], left=1, color=_OURS)
    axis.plot(worst, range(len(found)), "|", color="black", markersize=9, label="worst case")
    for place, mean in enumerate(means):
        axis.annotate(f" {mean:.1f}x", (max(mean, 1), place), va="center", fontsize=7)
    _ratio_axis(axis, [*means, *worst])
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=7)
    axis.legend(loc="lower right", fontsize=8)
    axis.set_title(
        f"times faster than native PyTorch ({rows[0].machine}, {rows[0].threads} threads): geometric means", fontsize=9
    )
    figure.savefig(path, dpi=110)


def _panel(top: Axes, bottom: Axes, rows: Sequence[Row], title: str) -> None:
    """One function over one axis: rates of both sides and of a copy above, the ratio below."""
    for direction, style in (("fwd", ".-"), ("fwd+bwd", ".--")):
        line = sorted((row for row in rows if row.direction == direction), key=lambda row: row.size)
        sizes = [row.size for row in line]
        native = [row.rate * row.ours_ms / row.native_ms for row in line]
        top.plot(sizes, [row.rate for row in line], style, color=_OURS, label=f"tilewright {direction}")
        top.plot(sizes, native, style, color=_GREY, label=f"native {direction}")
        bottom.plot(sizes, [row.ratio for row in line], style, color=_COLOURS[direction], label=direction)
        if direction == "fwd" and not rows[0].flops:
            copies = [row.copy_gbs for row in line]
            top.plot(sizes, copies, ":", color="black", label="copy of as many bytes as fwd")
    top.set(xscale="log", yscale="log", ylabel=rows[0].unit, title=title)
    axis = rows[0].axis or ("multiply-adds" if rows[0].flops else "elements")
    bottom.set(xscale="log", ylabel="native / ours", xlabel=axis)
    if axis == BYTES:
        ticks = [1 << k for k in range(10, 31, 4)]
        bottom.set_xticks(ticks, [report.size_name(t) for t in ticks])
        bottom.minorticks_off()
    bottom.axhline(1, color="black", linewidth=0.8)
    bottom.set_ylim(bottom=0)
    top.legend(fontsize=7)
    bottom.legend(fontsize=7)


def sweep(rows: Sequence[Row], title: str, path: Path) -> None:
    """Rate and ratio over size: two panels for each function, layout and axis."""
    members: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        members.setdefault((row.form, row.layout, row.axis), []).append(row)
    figure = Figure(figsize=(max(9, 5 * len(members)), 6.5), layout="constrained")
    panels = figure.subplots(2, len(members), sharex="col", squeeze=False)
    for column, ((form, layout, _), group) in enumerate(members.items()):
        _panel(panels[0, column], panels[1, column], group, form if layout == "contiguous" else f"{form} {layout}")
    figure.suptitle(f"{title} over size: {rows[0].machine}, {rows[0].threads} threads, {rows[0].isa}", fontsize=10)
    figure.savefig(path, dpi=110)


def write_all(folder: Path) -> None:
    """Every picture of a machine's folder, from what the CSVs hold now."""
    compared: list[Row] = []
    for path in sorted(folder.glob("*.csv")):
        rows = [row for row in results.read(path) if row.ok and row.comparator == NATIVE]
        if not rows:
            continue
        if path.stem.endswith("_sweep"):
            sweep(rows, rows[0].op, folder / f"{path.stem}.png")
            continue
        compared += rows
        speedup(rows, rows[0].op, folder / f"{path.stem}_speedup.png")
        if path.stem != "overhead":
            share(rows, rows[0].op, folder / f"{path.stem}_roofline.png")
    if compared:
        overview(compared, folder / "overview.png")

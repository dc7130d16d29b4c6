"""The measured part of ``make gpu``: every op's GPU cases against native, gated on float64, written as CSV and summary.

``python -m benchmarks.gpu.suite [op ...] [--quick] [--seconds N]`` runs it alone.
"""

import argparse
import csv
import importlib
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import get_type_hints

import torch
import triton
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import tilewright

from .. import gate
from ..cases import FORWARD, TRAIN, Case
from ..results import RESULTS
from . import measure

OPS = ("layer_norm", "batch_norm", "dropout", "matmul", "linear", "conv2d", "attention")
_QUERY = "clocks.sm,clocks.mem,power.draw,temperature.gpu,driver_version"


@dataclass
class Row:
    """One measured (or failed) case. Device times are of one launch within a CUDA graph."""

    op: str
    form: str
    shape: str
    layout: str
    dtype: str
    direction: str  # fwd, or bwd: the gradients alone
    date: str
    status: str  # ok, or FAILED: and the reason
    native_us: float = 0.0
    ours_us: float = 0.0
    ratio: float = 0.0  # native/ours, device time
    rate: float = 0.0  # ours, in `unit`
    unit: str = ""  # TFLOP/s or TB/s
    of_roof: float = 0.0  # of the product or copy measured in the same run
    native_call_us: float = 0.0  # one call from Python
    ours_call_us: float = 0.0
    launches: int = 0
    rounds: int = 0


@dataclass(frozen=True)
class Card:
    """What a run ran on."""

    name: str
    capability: str
    multiprocessors: int
    torch: str
    cuda: str
    triton: str
    tilewright: str
    date: str
    state: str  # nvidia-smi's clocks, power, temperature and driver
    copy_tbs: float
    matmul_tflops: float

    @property
    def slug(self) -> str:
        return "-".join(self.name.lower().split())


def describe() -> Card:
    """The current device, with its two roofs measured now."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    smi = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        state = subprocess.run(smi, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        state = "nvidia-smi did not answer"
    return Card(
        name=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
        triton=triton.__version__,
        tilewright=tilewright.__version__,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        state=state,
        copy_tbs=measure.copy_bandwidth() * 1e-12,
        matmul_tflops=measure.matmul_rate() * 1e-12,
    )


def select(ops: Sequence[str], quick: bool) -> list[tuple[Case, str]]:
    """(case, direction) in an order that reaches every op early: first the quick cases of all ops."""
    pairs = []
    for op in ops:
        cases: list[Case] = importlib.import_module(f"benchmarks.bench_{op}").GPU
        for case in cases:
            directions = [FORWARD] if TRAIN not in case.directions else [FORWARD, measure.BACKWARD]
            pairs += [(case, direction) for direction in directions if case.quick or not quick]
    return sorted(pairs, key=lambda pair: not pair[0].quick)


def run_case(case: Case, direction: str, card: Card) -> Row:
    """Check against float64, then time."""
    row = Row(case.op, case.form, case.shape, case.layout, case.dtype_name, direction, card.date, "ok")
    try:
        problem = case.build()
        reason = gate.check(case, problem, FORWARD if direction == FORWARD else TRAIN)
        if reason:
            row.status = f"FAILED: {reason}"
            return row
        timing = measure.measure(problem, direction)
    except Exception as error:  # out of memory, a launch that fails: a finding of the run, not its end
        row.status = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return row
    finally:
        torch.cuda.empty_cache()
    forward, train = problem.work[FORWARD], problem.work.get(TRAIN)
    flops = forward.flops if direction == FORWARD or train is None else train.flops - forward.flops
    moved = forward.bytes if direction == FORWARD or train is None else train.bytes - forward.bytes
    row.native_us, row.ours_us, row.ratio = timing.native_device * 1e6, timing.ours_device * 1e6, timing.ratio
    row.native_call_us, row.ours_call_us = timing.native_python * 1e6, timing.ours_python * 1e6
    row.launches, row.rounds = timing.launches, timing.rounds
    work, roof, row.unit = (flops, card.matmul_tflops, "TFLOP/s") if flops else (moved, card.copy_tbs, "TB/s")
    row.rate = work * 1e-12 / timing.ours_device
    row.of_roof = row.rate / roof
    return row


def write(folder: Path, card: Card, rows: Sequence[Row]) -> None:
    """<op>.csv for each op measured, and summary.md over all files there are: a run of some ops keeps the others'."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(Row)]
    for op in dict.fromkeys(row.op for row in rows):
        with (folder / f"{op}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows if row.op == op)
    rows = _read(folder)
    lines = [f"# {card.name}", "", *(f"- {name}: {value}" for name, value in asdict(card).items()), ""]
    lines += [
        "| group | geometric mean | worst | median share of the roof | cases | date |",
        "|---|---|---|---|---|---|",
    ]
    for name, members in _groups(rows).items():
        worst = min(members, key=lambda row: row.ratio)
        share = statistics.median(row.of_roof for row in members)
        lines.append(
            f"| {name} | {_geomean(members):.2f}x | {worst.ratio:.2f}x ({worst.shape} {worst.layout}) | {share:.0%} "
            f"| {len(members)} | {max(row.date for row in members)} |"
        )
    failed = [row for row in rows if row.status != "ok"]
    lines += [
        "",
        *(f"- {row.form} {row.shape} {row.layout} {row.dtype} {row.direction}: {row.status}" for row in failed),
    ]
    (folder / "summary.md").write_text("\n".join(lines) + "\n")


def _read(folder: Path) -> list[Row]:
    rows = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows += [
                Row(**{name: kind(line[name]) for name, kind in get_type_hints(Row).items()})
                for line in csv.DictReader(file)
            ]
    return rows


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.status == "ok":
            groups.setdefault(f"{row.form} {row.dtype} {row.direction}", []).append(row)
    return groups


def _geomean(rows: Sequence[Row]) -> float:
    return math.exp(statistics.fmean(math.log(row.ratio) for row in rows))


def show(rows: Sequence[Row], console: Console) -> None:
    """The short table that comes last."""
    table = Table(title="GPU: device time, native over ours", title_justify="left")
    for heading in ("case", "type", "pass", "native us", "ours us", "ratio", "rate", "of roof", "call us (native)"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for row in rows:
        name = f"{row.form} {row.shape} {row.layout if row.layout != 'contiguous' else ''}".strip()
        if row.status != "ok":
            table.add_row(name, row.dtype, row.direction, row.status[:60])
            continue
        calls = f"{row.ours_call_us:.1f} ({row.native_call_us:.1f})"
        table.add_row(
            name, row.dtype, row.direction, f"{row.native_us:.1f}", f"{row.ours_us:.1f}", f"{row.ratio:.2f}x",
            f"{row.rate:.3g} {row.unit}", f"{row.of_roof:.0%}", calls,
        )  # fmt: skip
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print; 1 where a case failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.suite", description=__doc__)
    parser.add_argument("ops", nargs="*", metavar="op", help=f"what to measure (all): {', '.join(OPS)}")
    parser.add_argument("--quick", action="store_true", help="the cases that stand for the others")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no case after so long")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results go")
    arguments = parser.parse_args(argv)
    unknown = [op for op in arguments.ops if op not in OPS]
    if unknown:
        parser.error(f"unknown op {', '.join(unknown)}; choose from {', '.join(OPS)}")
    if not torch.cuda.is_available():
        print("benchmarks.gpu: torch sees no GPU here", file=sys.stderr)
        return 2
    end = time.monotonic() + arguments.seconds
    console = Console(width=None if sys.stdout.isatty() else 150)
    torch.set_default_device("cuda")
    card, rows = describe(), []
    pairs = select(arguments.ops or OPS, arguments.quick)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(pairs))
        for case, direction in pairs:
            if time.monotonic() > end:
                break
            progress.update(task, description=f"{case.label(direction)[:48]:<48}")
            rows.append(run_case(case, direction, card))
            write(arguments.results / card.slug, card, rows)  # what is measured stays, should the run be stopped
            progress.advance(task)
    show(rows, console)
    if len(rows) < len(pairs):
        console.print(f"out of time: {len(pairs) - len(rows)} of {len(pairs)} cases were not measured")
    console.print(f"{card.name}: copy {card.copy_tbs:.2f} TB/s, product {card.matmul_tflops:.0f} TFLOP/s, {card.state}")
    return int(any(row.status != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(main())

"""Rows, and the files they live in: results/<machine>/<op>.csv, one line per case, direction and comparator."""

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .cases import Case, Problem
from .harness import Timing
from .machine import Machine
from .roofline import Roofline

RESULTS = Path(__file__).resolve().parent / "results"
NATIVE = "native"


@dataclass
class Row:
    """One measured (or failed) case. Times in ms; ratio is comparator/ours, so above 1 ours is faster."""

    op: str
    form: str
    shape: str
    layout: str
    dtype: str
    direction: str
    comparator: str
    threads: int
    isa: str
    status: str  # ok, or FAILED: and the reason
    native_ms: float = 0.0
    ours_ms: float = 0.0
    ratio: float = 0.0
    ratio_p20: float = 0.0
    ratio_p80: float = 0.0
    pairs: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    rate: float = 0.0  # ours, in `unit`
    unit: str = ""  # GFLOP/s or GB/s
    bound: str = ""  # what the roofline says limits the case: compute or memory
    roofline: float = 0.0  # the roofline's least time / ours
    peak_gflops: float = 0.0
    copy_gbs: float = 0.0
    copies: float = 0.0  # bound by memory: ours, in times of a copy of the first operand
    saved_native: int = -1  # forward+backward: bytes kept for backward beside inputs and parameters; -1: not measured
    saved_ours: int = -1
    size: float = 0.0
    axis: str = ""
    kind: str = ""  # of the case, as the next: what the report groups by beside form and type
    network: str = ""
    machine: str = ""
    torch: str = ""
    tilewright: str = ""
    date: str = ""

    @property
    def ok(self) -> bool:
        """Whether the row has a time."""
        return self.status == "ok"

    @property
    def key(self) -> tuple[str, ...]:
        """What a newer row replaces."""
        names = ("form", "shape", "layout", "dtype", "direction", "comparator", "isa", "axis")
        return (*(getattr(self, name) for name in names), str(self.threads))


def make_row(
    case: Case,
    direction: str,
    machine: Machine,
    outcome: tuple[Timing | None, str],
    problem: Problem,
    roofline: Roofline,
    comparator: str = NATIVE,
) -> Row:
    """The row of one measurement, without what is saved for backward."""
    timing, reason = outcome
    work = problem.work[direction]
    row = Row(
        op=case.op,
        form=case.form,
        shape=case.shape,
        layout=case.layout,
        dtype=case.dtype_name,
        direction=direction,
        comparator=comparator,
        threads=machine.threads,
        isa=machine.isa,
        status="ok" if timing else f"FAILED: {reason}",
        flops=work.flops,
        bytes=work.bytes,
        size=case.size,
        axis=case.axis,
        kind=case.kind,
        network=case.network,
        machine=machine.cpu,
        torch=machine.torch,
        tilewright=machine.tilewright,
        date=machine.date,
    )
    if timing is None:
        return row
    limit, row.bound = roofline.limit_seconds(work, case.dtype)
    row.native_ms, row.ours_ms, row.ratio = timing.native * 1e3, timing.ours * 1e3, timing.ratio
    row.ratio_p20, row.ratio_p80, row.pairs = timing.ratio_p20, timing.ratio_p80, timing.pairs
    row.rate, row.unit = (work.flops, "GFLOP/s") if work.flops else (work.bytes, "GB/s")
    row.rate *= 1e-9 / timing.ours
    row.roofline = limit / timing.ours
    if row.bound == "memory":
        row.copies = timing.ours / roofline.copy_seconds(problem.inputs[0])
    row.peak_gflops, row.copy_gbs = roofline.peak_gflops(case.dtype), roofline.copy_gbs(work.bytes)
    return row


def _parse(line: dict[str, str]) -> Row:
    kinds: dict[str, Any] = {field.name: field.type for field in fields(Row)}
    values: dict[str, Any] = {name: kinds[name](text) for name, text in line.items()}
    return Row(**values)


def read(path: Path) -> list[Row]:
    """The rows of a file, none where it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [_parse(line) for line in csv.DictReader(file)]


def write(path: Path, rows: list[Row]) -> None:
    """Replace the rows of the same cases, keep the others."""
    merged = {row.key: row for row in read(path)} | {row.key: row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in merged.values():
            record = asdict(row)
            writer.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in record.items()})


def read_all(folder: Path) -> list[Row]:
    """Every row of a machine, in the order of the files."""
    return [row for path in sorted(folder.glob("*.csv")) for row in read(path)]

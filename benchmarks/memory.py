"""Peak memory of attention over the sequence length: beyond the inputs, each call in a process of its own.

The peak is the kernel's own count of resident pages (VmHWM of /proc/self/status, reset before the call), so scratch
and results count, whoever allocated them.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from . import harness, machine
from .cases import FORWARD, TRAIN

LENGTHS = tuple(1 << k for k in range(10, 16))
KINDS = ("whole", "causal", "dropout")
_HEAD_SIZE = 64
# Native's path for dropout holds about six [S, S] matrices: lengths where they would not fit in so much are left out.
_MOST_BYTES = 8 << 30
_MATRICES = 6


@dataclass(frozen=True)
class Peak:
    """The peak of one call on [1, 1, S, 64] float32, in bytes; the inputs hold 768 S bytes."""

    kind: str
    direction: str
    side: str  # native or tilewright
    length: int
    peak_bytes: int


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) << 10


def _call(kind: str, direction: str, side: str, length: int) -> None:
    import torch

    import tilewright.functional as TF

    function = (
        TF.scaled_dot_product_attention if side == "tilewright" else torch.nn.functional.scaled_dot_product_attention
    )
    q, k, v = (torch.randn(1, 1, length, _HEAD_SIZE, requires_grad=direction == TRAIN) for _ in range(3))
    y = function(q, k, v, is_causal=kind == "causal", dropout_p=0.1 if kind == "dropout" else 0.0)
    if direction == TRAIN:
        y.backward(y.detach())


def child(kind: str, direction: str, side: str, length: int) -> int:
    """The peak of one call, in this process."""
    _call(kind, direction, side, 64)  # libraries, threads and their stacks
    # The measured call makes its inputs itself; they are taken off below, gradients are not.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    _call(kind, direction, side, length)
    return _resident("VmHWM") - before - 3 * length * _HEAD_SIZE * 4


def _points() -> Iterator[tuple[str, str, str, int]]:
    for kind in KINDS:
        for direction in (FORWARD, TRAIN):
            for length in LENGTHS:
                yield kind, direction, "tilewright", length
                if kind != "dropout" or _MATRICES * length * length * 4 <= _MOST_BYTES:
                    yield kind, direction, "native", length


def measure(console: Console) -> list[Peak]:
    """Every point of the picture."""
    # malloc as it comes: what the suite's settings keep for later would count as in use.
    environment = {name: value for name, value in os.environ.items() if name not in harness.MALLOC}
    peaks = []
    for point in track(list(_points()), "peak memory", console=console, transient=True):
        command = [sys.executable, "-m", "benchmarks.memory", *map(str, point)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks.append(Peak(*point, peak_bytes=int(result.stdout)))
    return peaks


def picture(peaks: list[Peak], path: Path) -> None:
    """Peak over length, a panel for each direction."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axis, direction in zip(panels, (FORWARD, TRAIN), strict=True):
        for side, style in (("native", "s--"), ("tilewright", "o-")):
            for kind, colour in zip(KINDS, ("#4c78a8", "#2a9d5c", "#e45756"), strict=True):
                line = [p for p in peaks if (p.kind, p.direction, p.side) == (kind, direction, side)]
                megabytes = [max(p.peak_bytes, 1 << 12) / (1 << 20) for p in line]
                axis.plot([p.length for p in line], megabytes, style, color=colour, label=f"{side}, {kind}")
        axis.set(xscale="log", yscale="log", xlabel="queries = keys", title=direction)
        axis.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
        axis.minorticks_off()
    panels[0].set_ylabel("peak beyond the inputs, MiB")
    panels[0].legend(fontsize=7)
    figure.suptitle("scaled_dot_product_attention, one head of 64, float32", fontsize=10)
    figure.savefig(path, dpi=110)


def run(folder: Path, console: Console) -> None:
    """Measure, write <folder>/memory/attention.csv and <folder>/attention_memory.png, print."""
    peaks = measure(console)
    path = folder / "memory" / "attention.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(peaks[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, peaks))
    picture(peaks, folder / "attention_memory.png")
    table = Table("kind", "pass", "side", *map(str, LENGTHS), title="peak MiB beyond the inputs, by queries = keys")
    lines: dict[tuple[str, str, str], list[str]] = {}
    for p in peaks:
        lines.setdefault((p.kind, p.direction, p.side), []).append(f"{p.peak_bytes / (1 << 20):.1f}")
    for key, values in lines.items():
        table.add_row(*key, *values)
    console.print(table)
    console.print(f"\n{machine.describe().cpu}: {path}")


if __name__ == "__main__":
    print(child(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))

"""The demonstration: two real models trained on real data, native and accelerated side by side.

    tilewright demo        (or: make demo, or: python -m examples.demo)

Shows a live progress bar, then a table, and writes demo_results/demo.png and demo.json. The allocator is the machine's
default and the same for both sides, which live in one process and take turns. Peak memory is measured apart: each side
alone in a fresh process.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import tilewright

from .side_by_side import EXAMPLES, Example, Side, measure_peak_mib, ratio, train

_COLOURS = {"native": "#9d9d9d", "tilewright": "#2a9d5c"}
_MALLOC = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
Results = dict[str, tuple[Side, Side]]


def _run(example: Example, arguments: argparse.Namespace, progress: Progress) -> tuple[Side, Side]:
    task = progress.add_task(f"{example.name}: training", total=None)

    def on_step(done: int, total: int, sides: Sequence[Side]) -> None:
        losses = " ".join(f"{side.losses[-1]:.3f}" for side in sides)
        text = f"{example.name}: loss {losses}, {ratio(sides):.2f}x"
        progress.update(task, completed=done, total=total, description=f"{text:<42}")

    steps = example.quick if arguments.quick else None
    sides = train(example, steps=steps, dropout=arguments.dropout, on_step=on_step)
    memory = progress.add_task(f"{example.name}: peak memory", total=len(sides))
    for side in sides:
        side.peak_mib = measure_peak_mib(example, side.name)
        progress.advance(memory)
    return sides


def make_table(example: Example, sides: tuple[Side, Side]) -> Table:
    """Loss, accuracy, time and memory of both."""
    native, ours = sides
    table = Table(title=example.title, box=SIMPLE_HEAD, title_justify="left", min_width=76)
    table.add_column("")
    for heading in ("native", "tilewright", "native / ours"):
        table.add_column(heading, justify="right")
    table.add_row("loss (mean of last 20 steps)", f"{native.final_loss:.4f}", f"{ours.final_loss:.4f}", "")
    table.add_row("held-out accuracy", f"{native.accuracy:.2%}", f"{ours.accuracy:.2%}", "")
    table.add_row(
        "time per step (median)", f"{native.step_ms:.1f} ms", f"{ours.step_ms:.1f} ms", f"{ratio(sides):.2f}x"
    )
    memory = f"{native.peak_mib / ours.peak_mib:.2f}x" if ours.peak_mib > 0 else ""
    table.add_row("peak memory of training", f"{native.peak_mib:.0f} MiB", f"{ours.peak_mib:.0f} MiB", memory)
    return table


def write_picture(results: Results, path: Path) -> None:
    """Loss curves and step times of every example."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), 2, squeeze=False)
    for (left, right), example in zip(axes, [e for e in EXAMPLES if e.name in results], strict=True):
        for side in results[example.name]:
            colour = _COLOURS[side.name]
            left.plot(side.losses, color=colour, label=side.name, linewidth=1.4 if side.name == "native" else 0.9)
            label = f"{side.name}: median {side.step_ms:.1f} ms"
            right.plot([1e3 * s for s in side.seconds], ".", color=colour, label=label, markersize=3)
            right.axhline(side.step_ms, color=colour, linewidth=1)
        left.set(title=f"{example.title}: loss", xlabel="step", yscale="log" if example.name == "digits" else "linear")
        right.set(title=f"time per step, {ratio(results[example.name]):.2f}x faster", xlabel="step", ylabel="ms")
        steps = [s for side in results[example.name] for s in side.seconds]
        right.set_ylim(0, 2.5e3 * statistics.median(steps))
        left.legend()
        right.legend()
    figure.savefig(path, dpi=120)


def _as_json(results: Results) -> dict[str, object]:
    def one(side: Side) -> dict[str, object]:
        numbers = {name: getattr(side, name) for name in ("final_loss", "accuracy", "step_ms", "peak_mib")}
        return {**numbers, "losses": side.losses, "step_seconds": side.seconds}

    return {
        name: {"ratio": ratio(sides), **{side.name: one(side) for side in sides}} for name, sides in results.items()
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tilewright demo", description="two real models, native and accelerated")
    parser.add_argument("--only", choices=[example.name for example in EXAMPLES], help="one of the two models")
    parser.add_argument("--quick", action="store_true", help="a few steps: does everything work?")
    parser.add_argument("--dropout", type=float, metavar="P", help="dropout of both (0: same loss curves)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of both (all cores)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("demo_results"), help="where picture and JSON go"
    )
    parser.add_argument("--json", action="store_true", help="results as JSON on stdout instead of tables")
    return parser.parse_args(argv)


def _write(results: Results, output: Path, stream: TextIO | None) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "demo.json").write_text(json.dumps(_as_json(results), indent=1) + "\n")
    write_picture(results, output / "demo.png")
    if stream is not None:
        json.dump(_as_json(results), stream, indent=1)
        stream.write("\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Train both models on both sides, show and write what came out."""
    arguments = _parse(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console = Console(stderr=arguments.json)
    if not console.is_terminal:
        console.width = 100
    start = time.perf_counter()
    console.print(
        f"tilewright {tilewright.__version__} ({tilewright._C.active_isa()}) beside torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads. Same weights, same batches, steps in turn."
    )
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), MofNCompleteColumn())
    results: Results = {}
    with Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=console) as progress:
        for example in EXAMPLES:
            if arguments.only in (None, example.name):
                results[example.name] = _run(example, arguments, progress)
    for example in EXAMPLES:
        if example.name in results and not arguments.json:
            console.print(make_table(example, results[example.name]))
    _write(results, arguments.output, sys.stdout if arguments.json else None)
    allocator = f"as the environment sets it ({', '.join(_MALLOC)})" if _MALLOC else "the default"
    console.print(
        f"Allocator: {allocator}, for both sides. Peak memory: resident memory of four training steps above what "
        "was loaded before, each side alone in a fresh process. Dropout draws other masks on each side: with "
        "--dropout 0 the loss curves are the same."
    )
    console.print(f"Picture: {arguments.output / 'demo.png'}; {time.perf_counter() - start:.0f} s in all.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

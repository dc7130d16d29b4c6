"""Run the suite: ``python -m benchmarks.run [op ...] [--quick]``; also ``tilewright bench`` and ``make bench``."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import comparators, harness, machine, memory, pictures, report, results, saved
from .cases import TRAIN, Case, Function
from .roofline import Roofline

OPS = ("layer_norm", "batch_norm", "conv2d", "matmul", "linear", "dropout", "attention", "models", "overhead")

# What caps each library to an ISA, so that --isa compares both sides as on a machine without the wider one.
_ISA_ENVIRONMENT = {
    "amx_bf16": {"TILEWRIGHT_ISA": "amx_bf16"},
    "avx512_bf16": {"TILEWRIGHT_ISA": "avx512_bf16", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "avx512": {"TILEWRIGHT_ISA": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "avx2": {
        "TILEWRIGHT_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "baseline": {
        "TILEWRIGHT_ISA": "baseline",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}


def select(ops: Sequence[str], *, quick: bool = False, sweep: bool = False, match: str = "") -> list[tuple[Case, str]]:
    """(case, direction) of the named ops; quick keeps the cases marked so, match those with the text in their names."""
    pairs = []
    for op in ops:
        module = importlib.import_module(f"benchmarks.bench_{op}")
        cases: list[Case] = getattr(module, "SWEEP", []) if sweep else module.CASES
        pairs += [(case, direction) for case in cases if case.quick or not quick for direction in case.directions]

    def names(case: Case, direction: str) -> str:
        return f"{case.label(direction)} {case.kind} {case.network}".lower()

    return [pair for pair in pairs if match.lower() in names(*pair)]


def models(ops: Sequence[str]) -> dict[str, str]:
    """The byte and flop model of each op, in words."""
    return {op: importlib.import_module(f"benchmarks.bench_{op}").MODEL for op in ops}


def _measure_all(
    pairs: Sequence[tuple[Case, str]],
    console: Console,
    comparator: str,
    wrap_native: Callable[[Function], Function] | None,
) -> list[results.Row]:
    here, roofline, rows = machine.describe(), Roofline(), []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(pairs))
        for case, direction in pairs:
            progress.update(task, description=f"{case.label(direction)[:48]:<48}")
            problem = case.build()
            outcome = harness.measure(case, problem, direction, wrap_native)
            row = results.make_row(case, direction, here, outcome, problem, roofline, comparator)
            if row.ok and direction == TRAIN and comparator == results.NATIVE:
                row.saved_native = saved.saved_bytes(problem.native, problem)
                row.saved_ours = saved.saved_bytes(problem.ours, problem)
            rows.append(row)
            del problem  # before the next one is built: two of the largest do not fit
            if case.size:
                harness.release_memory()
            progress.advance(task)
    return rows


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tilewright bench", description="native PyTorch and tilewright, case by case")
    parser.add_argument("ops", nargs="*", metavar="op", help=f"what to run (all): {', '.join(OPS)}")
    parser.add_argument("--quick", action="store_true", help="a subset of the cases, under five minutes")
    parser.add_argument(
        "--match", metavar="TEXT", default="", help="the cases with TEXT in their name, kind or network"
    )
    parser.add_argument("--sweep", action="store_true", help="speed over size for each op, as a picture")
    parser.add_argument("--memory", action="store_true", help="attention's peak memory over length, as a picture")
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout instead of tables")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of both sides (all cores)")
    parser.add_argument("--isa", choices=list(_ISA_ENVIRONMENT), help="cap both sides to an instruction set")
    parser.add_argument("--results", type=Path, metavar="DIR", default=results.RESULTS, help="where results go")
    parser.add_argument("--comparator", choices=comparators.NAMES, default=results.NATIVE, help="what to compare with")
    arguments = parser.parse_args(argv)
    unknown = [op for op in arguments.ops if op not in OPS]
    if unknown:
        parser.error(f"unknown op {', '.join(unknown)}; choose from {', '.join(OPS)}")
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write results/<machine>/, print. Exit status 1 where a case failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = _parse(argv)
    environment = {**harness.MALLOC, **_ISA_ENVIRONMENT.get(arguments.isa or "", {})}
    environment |= comparators.environment(arguments.comparator)
    if any(os.environ.get(name) != value for name, value in environment.items()):
        return harness.run_again("benchmarks.run", argv, environment)

    torch.set_num_threads(arguments.threads or machine.cores())
    console = Console(stderr=arguments.json)
    if not console.is_terminal:
        console.width = 100
    if arguments.memory:
        memory.run(arguments.results / machine.describe().slug, console)
        return 0
    ops = arguments.ops or list(OPS)
    pairs = select(ops, quick=arguments.quick, sweep=arguments.sweep, match=arguments.match)
    pairs = [(case, direction) for case, direction in pairs if comparators.applies(arguments.comparator, case)]
    if not pairs:
        options = "--match, --quick, --sweep and --comparator"
        print(f"tilewright bench: no case of {', '.join(ops)} fits {options} as given", file=sys.stderr)
        return 1
    rows = _measure_all(pairs, console, arguments.comparator, comparators.WRAP.get(arguments.comparator))

    here = machine.describe()
    folder = arguments.results / here.slug
    suffix = "_sweep" if arguments.sweep else ""
    for op in dict.fromkeys(row.op for row in rows):
        results.write(folder / f"{op}{suffix}.csv", [row for row in rows if row.op == op])
    pictures.write_all(folder)
    report.write_summary(folder, models(OPS))
    if arguments.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
        print()
    else:
        report.show(rows, console)
        console.print(f"\nCSV, pictures and summary.md: {folder}")
    return int(any(not row.ok for row in rows))


if __name__ == "__main__":
    sys.exit(main())

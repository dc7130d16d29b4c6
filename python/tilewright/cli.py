"""The command line: tilewright info | check | bench | demo.

bench and demo belong to the source checkout (benchmarks/, examples/); here they are only found and started, their
arguments passed on as they are.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import __version__, info
from ._check import ALLOWED, Result, check, public_ops
from .testing import available_isas

_WIDTH = 100  # columns; tables never ask for more

# Commands whose code is in the source checkout: module there, what to call it.
_IN_CHECKOUT = {
    "bench": ("benchmarks.run", "the benchmark suite"),
    "demo": ("examples.demo", "the demonstration"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; sys.argv's where None.

    Returns:
        The exit status: 0 done and, for check, all passed; 1 a check failed; 2 an unknown function, or no checkout.
        Wrong arguments leave through SystemExit, as argparse does it.

    Example:
        >>> tilewright.cli.main(["check", "layer_norm", "--json"])
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in _IN_CHECKOUT:
        return _run_in_checkout(arguments.command, rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return _info(arguments) if arguments.command == "info" else _check(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tilewright", description="Hand-written kernels for PyTorch.")
    parser.add_argument("--version", action="version", version=f"tilewright {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="info | check | bench | demo")
    described = commands.add_parser("info", help="what runs here: versions, instruction set, back ends, threads")
    checked = commands.add_parser("check", help="compare every function with float64 references, on each ISA")
    checked.add_argument("op", nargs="*", help="functions to check (all)")
    checked.add_argument("--isa", action="append", choices=available_isas(), help="only this ISA; may be repeated")
    for command in (described, checked):
        command.add_argument("--json", action="store_true", help="print JSON, nothing else")
    commands.add_parser("bench", help="measure against native PyTorch: bench [op ...] [options]", add_help=False)
    commands.add_parser("demo", help="train two real models, native and accelerated", add_help=False)
    return parser


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr)
    console.width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    return console


def _info(arguments: argparse.Namespace) -> int:
    facts = info()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    table = Table(title=f"tilewright {facts['tilewright']}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("torch", f"{facts['torch']} (built for {facts['built_for_torch']})")
    table.add_row("python", facts["python"])
    table.add_row("compiler", facts["compiler"])
    table.add_row("processor", f"{facts['cpu']}, {facts['cpus']} usable")
    table.add_row("threads", str(facts["threads"]))
    table.add_row("ISA in use", f"{facts['isa']} (available: {', '.join(facts['isas'])})")
    for name, backend in facts["backends"].items():
        table.add_row(name, f"{'yes' if backend['available'] else 'no'}: {backend['detail']}")
    served = Table(title="who computes what", title_justify="left")
    for heading in ("op", "on the CPU", "on a GPU", "why"):
        served.add_column(heading, overflow="fold")
    for op, row in facts["ops"].items():
        served.add_row(op, row["cpu"], row["cuda"], row["why"])
    console = _console()
    console.print(table)
    console.print(served)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    known = public_ops()
    unknown = [op for op in arguments.op if op not in known]
    if unknown:
        print(f"tilewright check: no function {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    ops, isas = arguments.op or known, arguments.isa or available_isas()
    columns = (TextColumn("checking {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(stderr=True), transient=True) as progress:
        task = progress.add_task(ops[0], total=len(ops))

        def done(op: str) -> None:
            following = ops.index(op) + 1
            progress.update(task, advance=1, description=ops[following] if following < len(ops) else "")

        results = list(check(ops, isas, done))
    passed = all(result.passed for result in results)
    if arguments.json:
        print(json.dumps({"passed": passed, "allowed": ALLOWED, "results": [_plain(r) for r in results]}, indent=2))
    else:
        _print_results(results, isas, passed)
    return 0 if passed else 1


def _plain(result: Result) -> dict[str, Any]:
    return {**vars(result), "passed": result.passed}


def _print_results(results: list[Result], isas: Sequence[str], passed: bool) -> None:
    table = Table(title="error against float64, in units of native's error", title_justify="left")
    table.add_column("function", no_wrap=True)
    table.add_column("checks", justify="right")
    for isa in isas:
        table.add_column(isa, justify="right", no_wrap=True)
    table.add_column("worst at", overflow="fold")
    by_op: dict[str, list[Result]] = {}
    for result in results:
        by_op.setdefault(result.op, []).append(result)
    for op, row in by_op.items():
        worst = max(row, key=lambda result: (not result.passed, result.ratio / result.allowed))
        cells = [
            f"{r.ratio:.2f}" if r.passed else f"[red]{'error' if r.error else f'{r.ratio:.3g}'} ✗[/red]" for r in row
        ]
        table.add_row(op, str(sum(r.checks for r in row)), *cells, worst.error or worst.worst)
    console = _console()
    console.print(table)
    failed = sum(not result.passed for result in results)
    bar = f"at most {ALLOWED:g} times native's error (minimal filtering: 8)"
    console.print(
        f"[green]all {len(results)} passed[/green]: {bar}"
        if passed
        else f"[red]{failed} of {len(results)} failed[/red]: {bar} is allowed"
    )


def _checkouts() -> list[Path]:
    """Where the source checkout may be: around this package, if installed in place, and the current folder."""
    roots = [Path(__file__).resolve().parents[2], Path.cwd()]
    return [root for root in roots if (root / "python" / "tilewright" / "cli.py").is_file()]


def _run_in_checkout(command: str, arguments: list[str]) -> int:
    module, what = _IN_CHECKOUT[command]
    path = f"{module.replace('.', '/')}.py"
    root = next((root for root in _checkouts() if (root / path).is_file()), None)
    if root is None:
        print(
            f"tilewright {command}: {what} ({path}) is in the source checkout, not in the installed package. "
            f"Clone the repository and run this command, or make {command}, inside it.",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(root))
    return int(importlib.import_module(module).main(arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())

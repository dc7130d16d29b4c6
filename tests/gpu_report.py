"""Counts of what the GPU's proofs covered, gathered from all test processes and printed at the end of the run."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

# xdist's workers, and test runs that tests start, inherit the environment of the process that prints.
_VARIABLE = "TILEWRIGHT_PROOF_COUNTS"
_made_here = False


def start() -> None:
    """Make the file that counts are gathered in, unless a process above did."""
    global _made_here
    if _VARIABLE not in os.environ:
        _made_here = True
        handle, name = tempfile.mkstemp(prefix="tilewright-proofs-", suffix=".jsonl")
        os.close(handle)
        os.environ[_VARIABLE] = name


def record(what: str, count: int) -> None:
    """Add to the number printed for `what`."""
    if _VARIABLE in os.environ:
        with open(os.environ[_VARIABLE], "a") as file:  # a short line is appended in one write
            file.write(json.dumps([what, count]) + "\n")


def record_each(what: str, names: Iterable[str]) -> None:
    """Count each name once for `what`, however many processes record it."""
    if _VARIABLE in os.environ:
        lines = "".join(json.dumps([what, name]) + "\n" for name in sorted(names))
        with open(os.environ[_VARIABLE], "a") as file:
            file.write(lines)


def totals() -> dict[str, int]:
    """What was recorded so far."""
    found: dict[str, int] = {}
    names: set[tuple[str, str]] = set()
    path = Path(os.environ.get(_VARIABLE, ""))
    for line in path.read_text().splitlines() if path.is_file() else []:
        what, counted = json.loads(line)  # a number, or a name that counts once
        new = counted if isinstance(counted, int) else int((what, counted) not in names)
        if isinstance(counted, str):
            names.add((what, counted))
        found[what] = found.get(what, 0) + new
    return dict(sorted(found.items()))


def prints_here() -> bool:
    """Is this the process that gathers and prints?"""
    return _made_here


def finish() -> None:
    """Remove the file, where this process made it."""
    if _made_here:
        Path(os.environ.pop(_VARIABLE)).unlink(missing_ok=True)

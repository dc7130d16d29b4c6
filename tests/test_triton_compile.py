"""Every Triton variant that can be launched compiles ahead of time, without spills, for every architecture.

Where TILEWRIGHT_WRITE_RESOURCES=1 the table of resources on sm_90 is written to benchmarks/results/gpu-resources/.
"""

import csv
import fcntl
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import triton

from tilewright.triton.variants import ARCHITECTURES, SHARED_MEMORY, Variant

from . import gpu_report
from .triton_families import PRESENT, own_variants

# The table 86 serves every part with little shared memory; 89 is the newest it compiles for without features of 12.x.
# Its code is that of 80, so only what 80 does not list is compiled again.
_TARGETS = {80: 80, 86: 89, 90: 90, 100: 100}
# Parts of a family's list, so that xdist's processes share the work.
_PARTS = 4
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_REPORT = Path(__file__).parent.parent / "benchmarks" / "results" / "gpu-resources" / "triton_sm_90.csv"


@dataclass
class Resources:
    registers: int
    stack: int
    local: int


def _resources(cubin: bytes, folder: Path) -> Resources:
    """What the assembler gave the kernel; spilled registers are on its stack."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    text = subprocess.run([_CUOBJDUMP, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert len(lines) == 1, text
    return Resources(*map(int, lines[0]))


def _is_half_product(variant: Variant) -> bool:
    """A product of 16-bit tiles with at least wgmma's 64 rows, which are keys in their gradient."""
    constants = dict(variant.constants)
    is_half = any("bf16" in kind or "fp16" in kind for _, kind in variant.signature)
    is_product = "BLOCK_N" in constants and ("BLOCK_K" in constants or "BLOCK_D" in constants)
    rows = "BLOCK_N" if variant.kernel.__name__ == "attention_backward_keys_kernel" else "BLOCK_M"
    return is_half and is_product and constants[rows] >= 64


def _defects(variant: Variant, compiled: Any, used: Resources, architecture: int, limit: int) -> list[str]:
    shared, ptx = compiled.metadata.shared, compiled.asm["ptx"]
    is_hopper = architecture == 90
    takes_descriptors = any(kind.startswith("tensordesc") for _, kind in variant.signature)
    wrong = {
        f"{used.stack} bytes of stack (spills)": used.stack > 0,
        f"{used.local} bytes of local memory": used.local > 0,
        f"{shared} bytes of shared memory": shared > limit,
        f"{used.registers} registers": used.registers * 32 * variant.num_warps > 65536,
        "no wgmma": is_hopper and _is_half_product(variant) and "wgmma.mma_async" not in ptx,
        "no TMA": is_hopper and takes_descriptors and "cp.async.bulk.tensor" not in ptx,
    }
    return [f"{variant.name} on {architecture}: {defect}" for defect, is_there in wrong.items() if is_there]


def _write(path: Path, rows: list[list[Any]]) -> None:
    """Merge rows into the report; the processes of xdist take turns."""
    header = ["kernel", "constants", "types", "warps", "stages", "registers", "shared", "stack", "local"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        table = {tuple(row[:5]): row for row in list(csv.reader(file))[1:]}
        table |= {tuple(str(cell) for cell in row[:5]): row for row in rows}
        file.truncate(0)
        csv.writer(file, lineterminator="\n").writerows([header, *(table[key] for key in sorted(table))])


def _row(variant: Variant, compiled: Any, used: Resources) -> list[Any]:
    constants = " ".join(f"{name}={value}" for name, value in variant.constants)
    types = " ".join(dict.fromkeys(kind for _, kind in variant.signature if kind.startswith(("*", "tensordesc"))))
    numbers = [used.registers, compiled.metadata.shared, used.stack, used.local]
    return [variant.kernel.__name__, constants, types, variant.num_warps, variant.num_stages, *numbers]


@pytest.mark.parametrize("part", range(_PARTS))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", PRESENT)
def test_every_variant_compiles(family, architecture, part, tmp_path):
    # Into Triton's own cache, whose keys are the sources, the options and the compiler: what did not change is not
    # compiled again (most of twenty minutes for the Triton and emulation files, two cores beside a build).
    listed = own_variants(family, architecture)
    assert listed, f"{family} lists no variant for {architecture}"
    assert len(set(listed)) == len(listed), "a variant is listed twice"
    small = set(own_variants(family, 86)) if architecture == 80 else set()
    compiled_for_80 = set(own_variants(family, 80)) if architecture == 86 else set()
    chosen = [variant for variant in listed if variant not in compiled_for_80][part::_PARTS]
    rows: list[list[Any]] = []
    defects: list[str] = []
    for variant in chosen:
        compiled = variant.compile(_TARGETS[architecture])
        used = _resources(compiled.asm["cubin"], tmp_path)
        limit = SHARED_MEMORY[86 if variant in small else architecture]
        defects += _defects(variant, compiled, used, architecture, limit)
        rows.append(_row(variant, compiled, used))
    assert not defects, "\n".join(defects)
    gpu_report.record(f"Triton variants compiled for sm_{architecture}", len(chosen))
    if architecture == 90:
        is_kept = os.environ.get("TILEWRIGHT_WRITE_RESOURCES") == "1"
        _write(_REPORT if is_kept else tmp_path / _REPORT.name, rows)

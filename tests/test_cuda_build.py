"""What nvcc made of csrc/cuda, read from the library that was built: every kernel on every architecture."""

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path

import pytest

from tests import gpu_report
from tilewright import _backends

ROOT = Path(__file__).parent.parent
REGISTERS_OF_A_MULTIPROCESSOR = 65536
STATIC_SHARED_LIMIT = 48 * 1024
RESOURCES = ROOT / "benchmarks" / "results" / "gpu-resources"


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture, as the assembler left it."""

    architecture: str
    kernel: str
    registers: int
    threads: int  # of __launch_bounds__, 0 without one
    static_shared: int  # bytes
    stack: int  # bytes a thread: spilled registers and arrays indexed at run time
    local: int


def _compiler() -> Path | None:
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return Path(found) if found else None


def _cuobjdump(*options: str) -> str:
    compiler = _compiler()
    places = [compiler.resolve().parent] if compiler else []
    places += sorted(Path("/usr/local").glob("cuda*/bin"))
    try:
        import triton

        places.append(Path(triton.__file__).parent / "backends" / "nvidia" / "bin")
    except ImportError:
        pass
    for place in places:
        if (place / "cuobjdump").exists():
            tool = [str(place / "cuobjdump"), *options, str(_backends.LIBRARY)]
            return subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    raise AssertionError("cuobjdump is missing: it comes with the CUDA toolkit, and with triton (pip install triton)")


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """What cuobjdump printed for each architecture."""
    parts = re.split(r"^arch = (\w+)$", text, flags=re.M)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def _demangled(names: list[str]) -> list[str]:
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [_short(name) for name in text.splitlines()]


def _short(name: str) -> str:
    """Without the return type, anonymous namespaces and parameters, which repeat the template's."""
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|^void |tilewright::gpu::|tilewright::", "", name)
    depth = 0
    for at in reversed(range(len(name))):
        depth += (name[at] == ")") - (name[at] == "(")
        if depth == 0:
            return name[:at]
    raise AssertionError(f"no parameters in {name}")


@cache
def kernels() -> tuple[Kernel, ...]:
    threads: dict[tuple[str, str], int] = {}
    for architecture, text in _sections(_cuobjdump("-elf")):
        # Sections come as ".nv.info.<kernel>" and lines of attributes.
        for name, attributes in re.findall(r"^\.nv\.info\.(\S+)$(.*?)(?=^\.\S|\Z)", text, flags=re.M | re.S):
            bounds = re.search(r"EIATTR_MAX_THREADS\s+Format:\s+\w+\s+Value:\s+(\w+) (\w+) (\w+)", attributes)
            if bounds:
                x, y, z = (int(number, 16) for number in bounds.groups())
                threads[architecture, name] = x * y * z
    found = []
    for architecture, text in _sections(_cuobjdump("-res-usage")):
        for name, usage in re.findall(r"Function (\S+):\n\s*(.*)", text):
            number = {key: int(value) for key, value in re.findall(r"(\w+)(?:\[\d+\])?:(\d+)", usage)}
            found.append((architecture, name, number))
    readable = _demangled([name for _, name, _ in found])
    return tuple(
        Kernel(
            architecture,
            short,
            number["REG"],
            threads.get((architecture, name), 0),
            number["SHARED"],
            number["STACK"],
            number["LOCAL"],
        )
        for (architecture, name, number), short in zip(found, readable, strict=True)
    )


def test_the_library_is_there_where_nvcc_is():
    assert _backends.LIBRARY.exists() == bool(_backends.architectures_built())
    if _compiler() is not None:
        assert _backends.LIBRARY.exists(), "nvcc is there, but the build made no CUDA library"


@pytest.mark.skipif(not _backends.LIBRARY.exists(), reason="built without nvcc")
class TestLibrary:
    def test_has_every_architecture(self):
        wanted = {f"sm_{name}" for name in _backends.architectures_built().split(";")}
        by_architecture = {name: [k.kernel for k in kernels() if k.architecture == name] for name in wanted}
        assert {k.architecture for k in kernels()} == wanted
        assert len({tuple(sorted(names)) for names in by_architecture.values()}) == 1, "architectures differ in kernels"

    def test_has_code_for_newer_ones(self):
        assert f"sm_{_backends.architectures_built().split(';')[-1]}.ptx" in _cuobjdump("-lptx")

    def test_every_source_has_kernels_in_it(self):
        launchers = [path for path in (ROOT / "csrc" / "cuda").glob("*.cu") if "__global__" in path.read_text()]
        names = {re.sub(r"<.*", "", k.kernel) for k in kernels()}
        for path in launchers:
            defined = re.findall(
                r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\(", path.read_text()
            )
            assert defined, f"{path.name}: no kernel recognised"
            missing = set(defined) - names
            assert not missing, f"{path.name}: not in the library: {missing}"

    def test_no_spills_and_no_local_memory(self):
        wrong = [k for k in kernels() if k.stack or k.local]
        assert not wrong, "\n".join(map(str, wrong))

    def test_a_block_of_the_promised_size_fits(self):
        without = {k.kernel for k in kernels() if not k.threads}
        assert not without, f"no __launch_bounds__: {without}"
        # The hardware hands out registers to warps in units of 256, so 8 a thread.
        wrong = [k for k in kernels() if -(-k.registers // 8) * 8 * k.threads > REGISTERS_OF_A_MULTIPROCESSOR]
        assert not wrong, "\n".join(map(str, wrong))

    def test_static_shared_memory_within_its_limit(self):
        wrong = [k for k in kernels() if k.static_shared > STATIC_SHARED_LIMIT]
        assert not wrong, "\n".join(map(str, wrong))

    def test_resource_table(self):
        """Every kernel's resources are known; TILEWRIGHT_WRITE_RESOURCES=1 writes the report."""
        for architecture in sorted({k.architecture for k in kernels()}):
            # A set: what two units share is in the library twice.
            rows = sorted({k for k in kernels() if k.architecture == architecture}, key=lambda k: k.kernel)
            assert len({k.kernel for k in rows}) == len(rows), "two kernels of one name"
            gpu_report.record(f"CUDA C++ kernels compiled for {architecture}", len(rows))
            if os.environ.get("TILEWRIGHT_WRITE_RESOURCES") == "1" and architecture == "sm_90a":
                RESOURCES.mkdir(parents=True, exist_ok=True)
                with open(RESOURCES / f"cuda_{architecture}.csv", "w", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    writer.writerow(field.name for field in fields(Kernel))
                    writer.writerows(astuple(row) for row in rows)

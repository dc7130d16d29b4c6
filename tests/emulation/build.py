"""Builds the CUDA sources for the emulation: csrc/cuda, unchanged, as C++.

Three libraries in build/emulation/<variant>: `selftest` (tests/emulation/selftest), `kernels` (csrc/cuda/*.cu) and, for
both variants one `bindings` (csrc/cuda/*.cpp, which see torch), loaded after the kernels. The kernels' library has no
thread_local variables but the kernels' __shared__ ones.

Ninja decides what to compile, by the headers each file included; a lock lets one process build and the others wait.
"""

import fcntl
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parent.parent.parent
EMULATION = Path(__file__).parent

# -ffp-contract=fast with fma, where the machine has it: nvcc contracts too. No errno, as in CMakeLists.txt.
FLAGS = "-std=c++20 -g1 -fPIC -fno-gnu-unique -fno-math-errno -ffp-contract=fast -Wall -Wextra -Wno-unknown-pragmas"
VARIANTS = {
    "plain": "-O1",
    # Checks as calls, and of UBSan what addresses can do wrong: all of it, inline, takes four times as long to compile.
    "sanitized": "-O1 -fsanitize=address,alignment,bounds,signed-integer-overflow,shift,integer-divide-by-zero "
    "-fno-sanitize-recover=all -fno-omit-frame-pointer --param asan-instrumentation-with-call-threshold=0",
}


def build(target: str, variant: str = "plain") -> Path:
    """The path of the library `target`: selftest, kernels or bindings."""
    folder = ROOT / "build" / "emulation" / f"{variant}-torch{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rules = _rules(variant)
        file = folder / "build.ninja"
        if not file.exists() or file.read_text() != rules:
            file.write_text(rules)
        done = subprocess.run([_ninja(), "-C", str(folder), f"{target}.so"], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the emulation does not build:\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
    return folder / f"{target}.so"


def cuda_sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


@cache
def _ninja() -> str:
    beside = Path(sys.executable).parent / "ninja"
    found = str(beside) if beside.exists() else shutil.which("ninja")
    assert found, "ninja is missing: pip install ninja"
    return found


def _extension() -> Path:
    """tilewright._C: the bindings call the checks of csrc/ops in it."""
    spec = importlib.util.find_spec("tilewright._C")
    assert spec is not None, "tilewright is not built"
    assert spec.origin is not None
    return Path(spec.origin).resolve()


def _machine_flags() -> str:
    if platform.machine() == "x86_64":
        words = Path("/proc/cpuinfo").read_text().split()
        if {"avx2", "fma", "bmi2", "f16c"} <= set(words):
            return "-march=x86-64-v3"
    return ""


def _rules(variant: str) -> str:
    compiler = os.environ.get("CXX", "g++")
    flags = f"{FLAGS} {VARIANTS[variant]} {_machine_flags()}"
    ours = f"-I{EMULATION}/include -I{EMULATION} -I{ROOT}/csrc -DTILEWRIGHT_EMULATION"
    system = " ".join(f"-isystem {path}" for path in cpp_extension.include_paths())
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)} -DAT_PER_OPERATOR_HEADERS"
    library = cpp_extension.library_paths()[0]
    extension = _extension()
    lines = [
        "ninja_required_version = 1.5",
        f"compiler = {compiler}",
        f"cuda_flags = {flags} {ours}",
        f"torch_flags = {flags} -fopenmp {ours} {system} {abi}",
        "rule cuda",
        "  command = $compiler -x c++ -include cuda_runtime.h $cuda_flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "rule plain",
        "  command = $compiler $cuda_flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "rule header",
        "  command = $compiler -x c++-header $torch_flags -MMD -MF $out.d $in -o $out",
        "  depfile = $out.d",
        "rule torch",
        "  command = $compiler -include torch.h $torch_flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "rule link",
        f"  command = $compiler -shared -Wl,-Bsymbolic {VARIANTS[variant]} $in $libraries -o $out",
    ]

    def objects(rule: str, sources: list[Path], order: str = "") -> str:
        names = []
        for source in sources:
            name = f"{source.parent.name}_{source.name}.o"
            lines.append(f"build {name}: {rule} {source}{order}")
            names.append(name)
        return " ".join(names)

    def link(target: str, inputs: str, libraries: str = "") -> None:
        lines.append(f"build {target}.so: link {inputs}")
        lines.append(f"  libraries = {libraries}")

    runtime = objects("plain", [EMULATION / f"{name}.cpp" for name in ("simt", "block", "fiber")])
    link("selftest", f"{objects('cuda', sorted((EMULATION / 'selftest').glob('*.cu')))} {runtime}")
    link("kernels", f"{objects('cuda', cuda_sources())} {runtime}")
    lines.append(f"build torch.h.gch: header {ROOT}/csrc/ops/torch.h")
    bindings = [EMULATION / "registration.cpp", *sorted((ROOT / "csrc" / "cuda").glob("*.cpp"))]
    link(
        "bindings",
        f"{objects('torch', bindings, ' | torch.h.gch')} | {extension}",
        f"{extension} -L{library} -ltorch_cpu -lc10 -Wl,-rpath,{library}:{extension.parent}",
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(build(*sys.argv[1:]))

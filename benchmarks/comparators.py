"""What ours is compared with beside stock native eager: yardsticks for the appendix of the report.

- ``compile``: torch.compile of native's operations, for the fused forms (it fuses what eager cannot).
- ``mkl-unlocked``: MKL takes an AVX2 path on CPUs that are not Intel's. A preload that answers its vendor check shows
  what it could do. It is built into a temporary folder for one run, and is neither shipped nor recommended.
"""

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from .cases import Case, Function

NAMES = ("native", "compile", "mkl-unlocked")
WRAP: Mapping[str, Callable[[Function], Function]] = {
    "compile": lambda function: torch.compile(function, dynamic=False)
}

_FUSED = ("_act", "dropout_add", "masked_scale")
_MKL_OPS = ("matmul", "linear", "attention")
_SOURCE = "int mkl_serv_intel_cpu_true(void) { return 1; }\nint mkl_serv_intel_cpu(void) { return 1; }\n"


def applies(comparator: str, case: Case) -> bool:
    """Whether the comparator says anything about the case."""
    if comparator == "compile":
        return any(part in case.form for part in _FUSED)
    return comparator != "mkl-unlocked" or (case.op in _MKL_OPS and case.dtype is torch.float32)


def environment(comparator: str) -> dict[str, str]:
    """What the process must be started with."""
    if comparator != "mkl-unlocked":
        return {}
    if "vendor_check" in os.environ.get("LD_PRELOAD", ""):
        return {"LD_PRELOAD": os.environ["LD_PRELOAD"]}
    folder = Path(tempfile.mkdtemp(prefix="tilewright-mkl-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "vendor_check.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-o", library, "-"], input=_SOURCE, text=True, check=True)
    return {"LD_PRELOAD": str(library)}

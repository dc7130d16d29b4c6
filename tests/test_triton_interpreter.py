"""The Triton families' tests, without a GPU: each file of tests/gpu in a process of its own with TRITON_INTERPRET=1."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from . import gpu_report
from .triton_families import PRESENT

_ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("family", PRESENT)
def test_family_in_the_interpreter(family):
    # CUDA tests, where there are any, run on the card; the interpreter wants CPU tensors.
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TILEWRIGHT_TEST_DEVICE": "cpu"}
    command = [sys.executable, "-m", "pytest", f"tests/gpu/test_{family}.py", "-x", "-p", "no:xdist"]
    run = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None, run.stdout[-2000:]
    assert int(passed[1]) >= 10, f"only {passed[0]}"
    assert "skipped" not in run.stdout.splitlines()[-1]
    gpu_report.record("Triton tests run in the interpreter", int(passed[1]))

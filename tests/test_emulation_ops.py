"""The emulation in the ops' CPU slot; and the CUDA C++ families' tests once more under AddressSanitizer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tilewright.functional as TF
from tests import gpu_report
from tests.emulation import build, emulated_cuda
from tests.gpu.emulated import is_emulated
from tests.sanitizer import sanitizer_environment

ROOT = Path(__file__).parent.parent


def test_the_cpu_slot_is_lent_and_given_back():
    x = torch.randn(40, 100)
    with emulated_cuda() as emulation:
        before = emulation.launches
        TF.layer_norm(x, (100,))
        during = emulation.launches
        assert during == before + 1
        assert emulation.kernels_launched
    TF.layer_norm(x, (100,))
    assert emulation.launches == during


def test_order_of_blocks_changes_no_bit(monkeypatch):
    x = torch.randn(300, 130, requires_grad=True)
    results = []
    with emulated_cuda():
        for seed in ("0", "1", "2"):
            monkeypatch.setenv("TILEWRIGHT_EMULATION_SEED", seed)
            y = TF.layer_norm(x, (130,))
            results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_refused_launch_is_an_error():
    with emulated_cuda() as emulation:
        emulation.kernels.simt_refuse_launches(1)
        try:
            with pytest.raises(RuntimeError, match=r"could not be launched: invalid configuration argument"):
                TF.layer_norm(torch.randn(3, 5), (5,))
        finally:
            emulation.kernels.simt_refuse_launches(0)


def test_no_access_outside_a_tensor():
    """A small grid of every emulated family, in a process that AddressSanitizer and UBSan watch."""
    files = [str(path) for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py")) if is_emulated(path)]
    build.build("kernels", "sanitized")  # here, because the compiler cannot run under the sanitizer's preload
    build.build("bindings")
    environment = os.environ | sanitizer_environment() | {"TILEWRIGHT_EMULATION": "sanitized", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-6000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed, run.stdout[-3000:]
    gpu_report.record("CUDA C++ tests repeated under AddressSanitizer", int(passed[1]))

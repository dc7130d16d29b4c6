"""Without a GPU, the test files of the CUDA C++ families run on the emulation, in the CPU slot of the ops.

A file belongs to one if its name contains a binding's of csrc/cuda: tests/gpu/test_layer_norm.py for layer_norm.cpp.
Every test gets its own order of blocks, warps and lanes, drawn from its name.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import gpu_report
from tests.emulation import emulated_cuda

_BINDINGS = {path.stem for path in (Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cpp")}
_WITHOUT_CARD = os.environ.get("TILEWRIGHT_TEST_DEVICE", "cpu") == "cpu" and os.environ.get("TRITON_INTERPRET") != "1"
_SAMPLE = 5

VARIANT = os.environ.get("TILEWRIGHT_EMULATION", "plain")


def is_emulated(path: Path) -> bool:
    """Does this test file run on the emulation?"""
    return _WITHOUT_CARD and any(binding in path.stem for binding in _BINDINGS)


@pytest.fixture(autouse=True, scope="module")
def cuda_emulation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Emulated kernels in the CPU slot while a file of a CUDA C++ family runs."""
    if not is_emulated(request.path):
        yield
        return
    with emulated_cuda(VARIANT) as emulation:
        before = emulation.launches
        yield
        suffix = " under AddressSanitizer" if VARIANT == "sanitized" else ""
        gpu_report.record(f"CUDA C++ kernel launches emulated{suffix}", emulation.launches - before)
        gpu_report.record_each(f"CUDA C++ kernels emulated{suffix}", emulation.kernels_launched)


@pytest.fixture(autouse=True)
def emulation_order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order in which the emulation runs blocks, warps and lanes."""
    if is_emulated(request.path):
        monkeypatch.setenv("TILEWRIGHT_EMULATION_SEED", str(zlib.crc32(request.node.nodeid.encode())))


def sample(items: list[pytest.Item]) -> None:
    """The small grid of a sanitized run: of each test of a CUDA C++ family the first parameters and every fifth."""
    if VARIANT != "sanitized":
        return
    seen: dict[tuple[Path, str], int] = {}
    kept = []
    for item in items:
        key = (item.path, getattr(item, "originalname", item.name))
        seen[key] = seen.get(key, -1) + 1
        if is_emulated(item.path) and seen[key] % _SAMPLE == 0:
            kept.append(item)
    items[:] = kept

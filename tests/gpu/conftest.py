"""Where GPU tests run: on the card (TILEWRIGHT_TEST_DEVICE=cuda), or without one emulated (CUDA C++) or interpreted.

With TRITON_INTERPRET=1 the Triton ops fill the CPU slot, so that the same tests call them with CPU tensors;
tests/test_triton_interpreter.py starts such a run for each family.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tilewright import _backends

from .emulated import cuda_emulation, emulation_order, is_emulated, sample  # noqa: F401  fixtures

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device(os.environ.get("TILEWRIGHT_TEST_DEVICE", "cpu"))
_RUNS_TRITON = find_spec("triton") is not None and (IS_INTERPRETED or DEVICE.type == "cuda")
_TRITON_FILES = {"test_attention.py", "test_conv2d.py", "test_linear.py", "test_matmul.py"}

if _RUNS_TRITON:
    from tilewright.triton import register, variants

    from ..triton_families import PRESENT, module


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if collection_path.name == "test_card.py":
        return True if DEVICE.type == "cpu" else None
    return True if collection_path.name in _TRITON_FILES and not _RUNS_TRITON else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sample(items)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that tensors of GPU tests live on."""
    return DEVICE


@pytest.fixture
def gpu_dtypes(request: pytest.FixtureRequest) -> tuple[torch.dtype, ...]:
    """Without bfloat16 in the interpreter, which computes it wrongly."""
    if DEVICE.type == "cuda" or is_emulated(request.path):
        return (torch.float32, torch.float16, torch.bfloat16)
    return (torch.float32, torch.float16)


@pytest.fixture(scope="session", autouse=True)
def _triton_ops() -> Iterator[None]:
    """In the interpreter the Triton ops serve CPU tensors; on a card all ops are there before a raw one is called."""
    if DEVICE.type == "cuda":
        _backends.choices(DEVICE.index or 0)
    library = register("CPU", PRESENT) if IS_INTERPRETED and _RUNS_TRITON else None
    yield
    if library is not None:
        library._destroy()


@pytest.fixture(params=(80, 90) if IS_INTERPRETED else ("this card",))
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The architecture whose table is in use: each of the interpreter's in turn, or that of the card."""
    if IS_INTERPRETED:
        monkeypatch.setattr(variants, "INTERPRETED_ARCHITECTURE", request.param)
    return variants.architecture_of(DEVICE)


@pytest.fixture(autouse=True)
def _launched_only_what_is_listed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every variant that a test launches is among those compiled ahead of time."""
    family = request.module.__name__.rpartition("test_")[2]
    if not _RUNS_TRITON or family not in PRESENT:
        yield
        return
    named = "table" in request.fixturenames
    architecture = request.getfixturevalue("table") if named else variants.architecture_of(DEVICE)
    with variants.observed() as seen:
        yield
    listed = {variant for present in PRESENT for variant in module(present).variants(architecture)}
    unlisted = {variant.name for variant in set(seen) - listed}
    assert not unlisted, f"launched, but not in variants({architecture})"

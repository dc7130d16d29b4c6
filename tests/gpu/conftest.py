"""Where GPU tests run: on the card (TILEWRIGHT_TEST_DEVICE=cuda), or Triton families in Triton's interpreter.

With TRITON_INTERPRET=1 the Triton ops fill the CPU slot, so that the same tests call them with CPU tensors;
tests/test_triton_interpreter.py starts such a run for each family.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device(os.environ.get("TILEWRIGHT_TEST_DEVICE", "cpu"))
_RUNS_TRITON = find_spec("triton") is not None and (IS_INTERPRETED or DEVICE.type == "cuda")

if _RUNS_TRITON:
    from tilewright.triton import FAMILIES, register, variants

    from ..triton_families import PRESENT, module

    _TRITON_FILES = {f"test_{family}.py" for family in FAMILIES}
else:
    _TRITON_FILES = {"test_attention.py", "test_conv2d.py", "test_linear.py", "test_matmul.py"}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if collection_path.name in _TRITON_FILES and not _RUNS_TRITON else None


@pytest.fixture(scope="session")
def device() -> torch.device:
    return DEVICE


@pytest.fixture(scope="session")
def gpu_dtypes() -> tuple[torch.dtype, ...]:
    """bfloat16 on the card only: the interpreter computes it wrongly."""
    return (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE.type == "cuda" else ()))


@pytest.fixture(scope="session", autouse=True)
def _triton_ops() -> Iterator[None]:
    """In the interpreter the Triton ops serve CPU tensors."""
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
    unlisted = {variant.name for variant in set(seen) - set(module(family).variants(architecture))}
    assert not unlisted, f"launched, but not in variants({architecture})"

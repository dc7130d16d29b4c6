"""Where the GPU's tests run: on the card, or without one in the emulation (CUDA C++) or the interpreter (Triton)."""

import os

import pytest
import torch

from .emulated import cuda_emulation, emulation_order, sample  # noqa: F401  fixtures


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that tensors of GPU tests live on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TILEWRIGHT_EMULATION") == "sanitized":
        items[:] = sample(items)

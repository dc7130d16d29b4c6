"""Where the GPU's tests run: on the card (TILEWRIGHT_TEST_DEVICE=cuda), or without one in the emulation."""

import os
from pathlib import Path

import pytest
import torch

from .emulated import cuda_emulation, emulation_order, sample  # noqa: F401  fixtures

DEVICE = torch.device(os.environ.get("TILEWRIGHT_TEST_DEVICE", "cpu"))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if collection_path.name == "test_card.py" and DEVICE.type == "cpu" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sample(items)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that tensors of GPU tests live on."""
    return DEVICE

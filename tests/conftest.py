"""Fixtures shared by all tests: every test that asks for `isa` runs on each ISA this machine has."""

from collections.abc import Iterator

import pytest
import torch

from tilewright.testing import available_isas, force_isa


@pytest.fixture(params=available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The ISA in use during the test."""
    with force_isa(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)

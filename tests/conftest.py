"""Fixtures shared by all tests: every test that asks for `isa` runs on each ISA this machine has."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tilewright.testing import available_isas, force_isa

from . import gpu_report

# The same draws on every run: a failure in CI is a failure here. HYPOTHESIS_PROFILE=default draws anew.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "reproducible"))


@pytest.fixture(params=available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The ISA in use during the test."""
    with force_isa(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        gpu_report.start()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the proofs without a GPU covered in this run."""
    totals = gpu_report.totals()
    if totals:
        terminalreporter.section("GPU code proven without a GPU")
        for what, count in totals.items():
            terminalreporter.write_line(f"{what}: {count}")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        gpu_report.finish()

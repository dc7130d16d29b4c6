"""Options of ``pytest benchmarks``."""

import pytest

from . import harness


def pytest_addoption(parser: pytest.Parser) -> None:
    """--all-cases, beside pytest-benchmark's own."""
    parser.addoption("--all-cases", action="store_true", help="every case, not the quick ones only")


def pytest_report_header() -> str:
    """Times with and without the allocator settings must not be compared, so say which these are."""
    settings = " ".join(f"{name}={value}" for name, value in harness.MALLOC.items())
    found = "as in the suite" if harness.has_malloc_environment() else f"the default, not {settings}"
    return f"allocator settings: {found}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per case and direction."""
    from .run import OPS, select

    if "direction" in metafunc.fixturenames:
        pairs = select(OPS, quick=not metafunc.config.getoption("--all-cases"))
        ids = [f"{case.op}: {case.label(direction)}" for case, direction in pairs]
        metafunc.parametrize(("case", "direction"), pairs, ids=ids)

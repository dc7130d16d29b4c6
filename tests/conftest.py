"""Fixtures shared by all tests: every test that asks for `isa` runs on each ISA whose kernels may differ there."""

import os
import pathlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tilewright.testing import available_isas, force_isa

from . import gpu_report

# The same draws on every run: a failure in CI is a failure here. HYPOTHESIS_PROFILE=default draws anew.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "reproducible"))


# The only kernels that these do not share with avx512 are those of the products of bfloat16, of which amx_bf16 also
# makes convolutions of float32 and float16.
_BF16_ISAS = ("avx512_bf16", "amx_bf16")
_PRODUCTS = (
    "test_attention_decode.py",
    "test_attention.py",
    "test_attention_autograd.py",
    "test_conv2d.py",
    "test_conv2d_act.py",
    "test_conv2d_pairs.py",
    "test_conv2d_semantics.py",
    "test_conv2d_split.py",
    "test_linear.py",
    "test_matmul.py",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        products = metafunc.definition.path.name in _PRODUCTS
        isas = [name for name in available_isas() if products or name not in _BF16_ISAS]
        metafunc.parametrize("isa", isas, indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The ISA in use during the test."""
    with force_isa(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def process_group(tmp_path: pathlib.Path) -> Iterator[None]:
    """torch.distributed with this process alone in it."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


# Files whose few tests take a minute and more each: first, so that none of them starts last, alone. Each process begins
# with every second one (or third ...), because xdist hands out the list in stretches of equal length.
_LONG = (
    "test_sanitizer.py",
    "test_triton_interpreter.py",
    "test_triton_compile.py",
    "test_emulation_ops.py",
    "test_examples.py",
    "test_large.py",
)


def _is_told_by_avx512(item: pytest.Item) -> bool:
    """A test on such an ISA of a type whose kernels are those of avx512."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    own = [torch.bfloat16]
    if parameters.get("isa") == "amx_bf16" and item.path.name.startswith("test_conv2d"):
        own += [torch.float32, torch.float16]
    return parameters.get("isa") in _BF16_ISAS and parameters.get("dtype", torch.bfloat16) not in own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not _is_told_by_avx512(item)]
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    rest = [item for item in items if item.path.name not in _LONG]
    ordered: list[pytest.Item] = []
    for process in range(processes):
        files = _LONG[process::processes]
        ordered += [item for item in items if item.path.name in files]
        ordered += rest[len(rest) * process // processes : len(rest) * (process + 1) // processes]
    items[:] = ordered


def pytest_configure() -> None:
    gpu_report.start()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the proofs without a GPU covered in this run."""
    totals = gpu_report.totals() if gpu_report.prints_here() else {}
    if totals:
        terminalreporter.section("GPU code proven without a GPU")
        for what, count in totals.items():
            terminalreporter.write_line(f"{what}: {count}")


def pytest_unconfigure() -> None:
    gpu_report.finish()

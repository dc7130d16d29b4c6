"""Which kernels run: the choice of the ISA, its cap, and the one-definition hazard between ISA units."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tilewright.functional as TF
from tilewright import _C
from tilewright.testing import available_isas, force_isa

ROOT = Path(__file__).parent.parent


def _objects() -> list[Path]:
    return sorted(
        path for path in ROOT.glob("build/cmake-*/CMakeFiles/kernel_*.dir/**/*.o") if "-sanitize" not in str(path)
    )


def test_each_isa_unit_exports_one_symbol():
    """An inline function with external linkage would be merged across ISAs and crash machines without the wider one."""
    objects = _objects()
    if not objects:
        pytest.skip("no build folder here: tilewright is installed, not built from this checkout")
    assert len({path.parents[3].name for path in objects}) >= 3
    for path in objects:
        table = subprocess.run(
            ["nm", "--defined-only", "--extern-only", str(path)], capture_output=True, text=True, check=True
        )
        symbols = [line.split()[-1] for line in table.stdout.splitlines()]
        _, family_and_isa = path.parents[3].name.removesuffix(".dir").split("kernel_", 1)
        assert symbols == [f"tilewright_fill_{family_and_isa}"], f"{path}: {symbols}"


def test_isa_units_initialise_nothing_when_loaded():
    """A static initialiser in an AVX-512 unit would run before any CPU check."""
    for path in _objects():
        sections = subprocess.run(["readelf", "-SW", str(path)], capture_output=True, text=True, check=True).stdout
        assert ".init_array" not in sections, path
        assert ".ctors" not in sections, path


def _active_isa(cap: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TILEWRIGHT_ISA"}
    if cap is not None:
        environment["TILEWRIGHT_ISA"] = cap
    code = "import tilewright; print(tilewright._C.active_isa())"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("cap", [None, "amx_bf16", "avx512_bf16", "avx512", "avx2", "baseline"])
def test_environment_caps_the_isa(cap):
    isas = available_isas()
    expected = cap if cap in isas else isas[-1]
    assert _active_isa(cap).stdout.strip() == expected


def test_unknown_cap_is_refused_with_a_sentence():
    result = _active_isa("sse9")
    assert result.returncode != 0
    assert "TILEWRIGHT_ISA must be amx_bf16, avx512_bf16, avx512, avx2 or baseline, got 'sse9'" in result.stderr


def test_force_isa_switches_and_returns():
    before = _C.active_isa()
    for name in available_isas():
        with force_isa(name):
            assert _C.active_isa() == name
    assert _C.active_isa() == before
    with pytest.raises(RuntimeError, match="no ISA"):
        _C.force_isa("sse9")


def test_isas_agree():
    x = torch.randn(9, 77)
    results = []
    for name in available_isas():
        with force_isa(name):
            results.append(TF.layer_norm(x, (77,)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_a_torch_it_was_not_built_for_is_refused(tmp_path):
    code = (
        "import torch; torch.__version__ = '2.99.0'\n"
        "try:\n import tilewright\nexcept ImportError as error:\n print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "was built for torch" in result.stdout
    assert "2.99.0" in result.stdout

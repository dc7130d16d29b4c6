"""The command line: what it prints for people and for programs, and its exit status."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tilewright
from tilewright import _check, cli, functional
from tilewright.testing import available_isas


def _json(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, dict]:
    status = cli.main([*arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_info_for_programs_and_people(capsys):
    status, facts = _json(capsys, "info")
    assert status == 0
    assert facts == tilewright.info()
    assert facts["tilewright"] == tilewright.__version__
    assert facts["torch"] == torch.__version__
    assert facts["isa"] in facts["isas"] == available_isas()
    assert facts["backends"].keys() == {"cpu", "cuda", "triton"}
    assert facts["backends"]["cpu"]["available"]
    assert facts["backends"]["cuda"]["available"] or facts["backends"]["cuda"]["detail"]
    assert facts["threads"] == torch.get_num_threads()
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any(facts["compiler"] in line for line in lines)


def test_every_public_function_has_cases_and_passes(capsys):
    """The whole check, as a user runs it."""
    status, report = _json(capsys, "check")
    failed = [result for result in report["results"] if not result["passed"]]
    assert (status, failed) == (0, [])
    assert report["passed"]
    assert {(r["op"], r["isa"]) for r in report["results"]} == {
        (op, i) for op in functional.__all__ for i in available_isas()
    }
    assert all(result["checks"] > 0 for result in report["results"])


def test_check_of_one_function_on_one_isa_as_a_table(capsys):
    assert cli.main(["check", "layer_norm", "--isa", "baseline"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("layer_norm" in line for line in lines)
    assert "all 1 passed" in lines[-1]
    assert not any("avx2" in line for line in lines)


def test_check_fails_where_a_kernel_is_wrong(capsys, monkeypatch):
    right = functional.layer_norm
    monkeypatch.setattr(functional, "layer_norm", lambda *arguments: right(*arguments) * (1 + 1e-4))
    status, report = _json(capsys, "check", "layer_norm")
    assert status == 1
    assert not report["passed"]
    assert all(result["ratio"] > 2 and "float" in result["worst"] for result in report["results"])
    assert cli.main(["check", "layer_norm"]) == 1
    assert "failed" in capsys.readouterr().out.splitlines()[-1]


def test_check_fails_where_a_call_raises_or_a_gradient_is_missing(capsys, monkeypatch):
    def broken(*arguments: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(functional, "layer_norm", broken)
    status, report = _json(capsys, "check", "layer_norm")
    assert status == 1
    assert "no such kernel" in report["results"][0]["error"]
    monkeypatch.setattr(
        functional, "layer_norm", lambda *arguments: torch.nn.functional.layer_norm(*arguments).detach()
    )
    assert cli.main(["check", "layer_norm"]) == 1


def test_check_fails_for_a_function_without_cases(capsys, monkeypatch):
    monkeypatch.setattr(functional, "__all__", [*functional.__all__, "new_op"])
    status, report = _json(capsys, "check", "new_op")
    assert status == 1
    assert "no case" in report["results"][0]["error"]
    monkeypatch.setitem(_check.CASES, "gone", _check.CASES["layer_norm"])
    assert "not in tilewright.functional" in _json(capsys, "check", "gone")[1]["results"][0]["error"]


def test_check_leaves_the_generator_and_the_isa_alone():
    state, isa = torch.get_rng_state(), tilewright.info()["isa"]
    _check.check_op("layer_norm")
    assert torch.equal(torch.get_rng_state(), state)
    assert tilewright.info()["isa"] == isa


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["info", "--fast"], ["check", "layer_norm", "--isa", "sse9"], ["check", "--isa"]]
)
def test_wrong_arguments_exit_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2
    assert "usage: tilewright" in capsys.readouterr().err


def test_check_of_an_unknown_function(capsys):
    assert cli.main(["check", "convolve"]) == 2
    assert "no function convolve; there are" in capsys.readouterr().err


def _checkout(folder: Path, package: str, module: str) -> Path:
    """A folder that looks like the source checkout, whose entry writes down its arguments and returns 7."""
    (folder / "python" / "tilewright").mkdir(parents=True)
    (folder / "python" / "tilewright" / "cli.py").touch()
    (folder / package).mkdir()
    (folder / package / "__init__.py").touch()
    write = "Path(__file__).with_name('seen').write_text(repr(argv))"
    code = f"from pathlib import Path\n\ndef main(argv):\n    {write}\n    return 7\n"
    (folder / package / f"{module}.py").write_text(code)
    return folder


@pytest.mark.parametrize(
    ("command", "package", "module"), [("bench", "benchmarks", "run"), ("demo", "examples", "demo")]
)
def test_bench_and_demo_are_handed_over(command, package, module, tmp_path, monkeypatch):
    root = _checkout(tmp_path, package, module)
    monkeypatch.setattr(cli, "_checkouts", lambda: [root])
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    try:
        assert cli.main([command, "layer_norm", "--quick", "-h"]) == 7
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] == package:
                del sys.modules[name]
    assert (root / package / "seen").read_text() == "['layer_norm', '--quick', '-h']"


@pytest.mark.parametrize("command", ["bench", "demo"])
def test_bench_and_demo_without_the_checkout(command, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_checkouts", lambda: [])
    assert cli.main([command]) == 2
    assert "source checkout" in capsys.readouterr().err


def test_as_a_module_from_anywhere(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "tilewright", "info", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout)["torch"] == torch.__version__
    version = subprocess.run(
        [sys.executable, "-m", "tilewright", "--version"], capture_output=True, text=True, check=True
    )
    assert version.stdout.strip() == f"tilewright {tilewright.__version__}"

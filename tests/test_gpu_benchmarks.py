"""What `make gpu` decides and writes; its measurements need a card."""

import pytest

pytest.importorskip("triton")
pytest.importorskip("rich")

from benchmarks.gpu import __main__ as make_gpu
from benchmarks.gpu import suite

_CARD = suite.Card("NVIDIA Test", "9.0", 132, "2.11", "13.0", "3.6", "0.1", "2026-01-02 03:04", "", 4.0, 700.0)


def _row(op: str, ratio: float, date: str, status: str = "ok") -> suite.Row:
    return suite.Row(op, op, "8x8", "contiguous", "bf16", "fwd", date, status, 2.0, 1.0, ratio, 3.0, "TB/s", 0.75)


def test_a_run_of_one_op_keeps_what_others_measured(tmp_path):
    suite.write(tmp_path, _CARD, [_row("dropout", 4.0, "2026-01-01"), _row("dropout", 1.0, "2026-01-01")])
    suite.write(tmp_path, _CARD, [_row("linear", 1.5, "2026-01-02"), _row("linear", 0, "2026-01-02", "FAILED: why")])
    assert {path.name for path in tmp_path.iterdir()} == {"dropout.csv", "linear.csv", "summary.md"}
    summary = (tmp_path / "summary.md").read_text()
    assert "| dropout bf16 fwd | 2.00x | 1.00x (8x8 contiguous) | 75% | 2 | 2026-01-01 |" in summary
    assert "| linear bf16 fwd | 1.50x | 1.50x (8x8 contiguous) | 75% | 1 | 2026-01-02 |" in summary
    assert "- linear 8x8 contiguous bf16 fwd: FAILED: why" in summary


@pytest.mark.parametrize("op", suite.OPS)
def test_every_op_has_cases_in_both_directions(op):
    directions = {direction for _, direction in suite.select([op], quick=False)}
    assert directions == {"fwd", "bwd"}
    assert suite.select([op], quick=True)


@pytest.mark.parametrize("op", suite.OPS)
def test_the_test_files_of_every_op_are_there(op):
    assert op in make_gpu.TESTS
    for name in make_gpu.TESTS[op]:
        assert (make_gpu.ROOT / "tests" / "gpu" / f"test_{name}.py").exists()


def test_a_step_that_hangs_is_stopped():
    step = make_gpu.Step("hangs", ["sleep", "60"], 1)
    assert make_gpu.run(step, 0.2, {}) == "stopped after 0 s"
    assert make_gpu.run(make_gpu.Step("fails", ["false"], 1), 5, {}) == "exit status 1"


def test_the_steps_fit_the_time_promised():
    chosen = make_gpu.steps(["conv2d"], quick=False)
    assert [step.name for step in chosen if step.name not in ("memcheck", "racecheck")] == [
        "build",
        "tests",
        "benchmarks",
    ]
    assert sum(step.seconds for step in chosen) <= make_gpu.TOTAL_SECONDS + 30


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert make_gpu.main([]) == 2
    assert "torch sees no GPU here" in capsys.readouterr().out

"""The example models: the accelerated one trains as the native one does, and the demonstration runs from end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the digits come with scikit-learn (the demo extra)")

from examples.side_by_side import EXAMPLES, make_sides, train

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_outputs_and_gradients_as_native(example):
    native, ours = make_sides(example, dropout=0.0)
    assert {name: p.shape for name, p in native.model.state_dict().items()} == {
        name: p.shape for name, p in ours.model.state_dict().items()
    }
    assert any(type(module).__module__.startswith("tilewright") for module in ours.model.modules())
    # In float64: of two pixels of a pooling window that differ by one float32 rounding, either may get the gradient.
    batch = next(iter(example.data().batches(1)))
    batch = tuple(t.double() if t.is_floating_point() else t for t in batch)
    for side in (native, ours):
        example.module.loss(side.model.double(), batch).backward()
    for (name, expected), (_, actual) in zip(
        native.model.named_parameters(), ours.model.named_parameters(), strict=True
    ):
        assert expected.grad is not None, name
        # Relative in norm: a few hundred roundings pass through the layers (2^-53 each).
        difference = (actual.grad - expected.grad).norm() / expected.grad.norm()
        assert difference < 1e-12, f"{name}: {difference:.1e}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_same_loss_curve_without_dropout(example):
    native, ours = train(example, steps=example.quick, dropout=0.0)
    # Training doubles a rounding difference every few steps; a wrong gradient shows in the first digits at once.
    torch.testing.assert_close(torch.tensor(ours.losses), torch.tensor(native.losses), rtol=2e-3, atol=2e-3)
    assert ours.losses[-1] < ours.losses[0]


def test_demo_runs(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "examples.demo", "--quick", "--json", "--output", str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    results = json.loads(finished.stdout)
    for example in EXAMPLES:
        for side in ("native", "tilewright"):
            record = results[example.name][side]
            assert record["losses"][-1] < record["losses"][0]
            assert record["peak_mib"] > 0
    assert (tmp_path / "demo.png").stat().st_size > 10_000

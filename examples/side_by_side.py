"""Train one example twice at once: native and accelerated, same weights, same batches, step by step in turn.

Taking turns (A B A B ...) lets what else runs on the machine disturb both sides alike: the ratio of each pair holds.
"""

import copy
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

import tilewright

from . import digits, language_model

_ROOT = Path(__file__).resolve().parent.parent
_MEMORY_STEPS = 4  # the optimizer's state is there after the first; the rest show what a step needs at most


@dataclass(frozen=True)
class Example:
    """A model with its data, by the names that both example files share."""

    name: str
    title: str
    module: ModuleType
    data: Callable[[], "digits.Digits | language_model.Sources"]
    quick: int  # epochs or steps of a smoke run


EXAMPLES = (
    Example("digits", "convolutional classifier, handwritten digits", digits, digits.Digits, 1),
    Example("language_model", "Transformer language model, Python sources", language_model, language_model.Sources, 4),
)


@dataclass
class Side:
    """One of the two models and what its training recorded."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracy: float = math.nan
    peak_mib: float = math.nan

    @property
    def final_loss(self) -> float:
        """Mean of the last steps: a single batch is noisy."""
        return statistics.fmean(self.losses[-20:])

    @property
    def step_ms(self) -> float:
        """Median time of a step."""
        return statistics.median(self.seconds) * 1e3

    def step(self, example: Example, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        """One whole training step, timed."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        value = example.module.loss(self.model, batch)
        value.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(value.item())


def make_sides(example: Example, dropout: float | None = None) -> tuple[Side, Side]:
    """The native model and its accelerated copy."""
    torch.manual_seed(0)
    model = example.module.make_model() if dropout is None else example.module.make_model(dropout)
    twin = tilewright.accelerate(copy.deepcopy(model))
    make_optimizer = example.module.make_optimizer
    return Side("native", model, make_optimizer(model)), Side("tilewright", twin, make_optimizer(twin))


def train(
    example: Example,
    *,
    steps: int | None = None,
    dropout: float | None = None,
    on_step: Callable[[int, int, Sequence[Side]], None] | None = None,
) -> tuple[Side, Side]:
    """Train both; steps counts epochs for digits. on_step(done, total, sides) is called after each pair."""
    data = example.data()
    sides = make_sides(example, dropout)
    total = data.steps() if steps is None else data.steps(steps)
    batches = data.batches() if steps is None else data.batches(steps)
    for done, batch in enumerate(batches, 1):
        for side in sides:
            side.step(example, batch)
        if on_step:
            on_step(done, total, sides)
    for side in sides:
        side.accuracy = example.module.accuracy(side.model, data)
    return sides


def ratio(sides: Sequence[Side]) -> float:
    """Native's step time over ours, pair by pair, the median."""
    return statistics.median(a / b for a, b in zip(sides[0].seconds, sides[1].seconds, strict=True))


def measure_peak_mib(example: Example, side: str) -> float:
    """Peak resident memory of a few training steps of one side alone, in a fresh process: see _report_peak."""
    package = Path(tilewright.__file__).parent.parent  # the same tilewright as here, wherever it is installed
    path = os.pathsep.join(filter(None, [str(_ROOT), str(package), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "examples.side_by_side", example.name, side]
    answer = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def _status_mib(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def _report_peak(name: str, side_name: str) -> None:
    """Print the peak of resident memory above what libraries and data hold before the model is made."""
    example = next(example for example in EXAMPLES if example.name == name)
    data = example.data()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak that importing left
    before = _status_mib("VmRSS")
    torch.manual_seed(0)
    model = example.module.make_model()
    if side_name == "tilewright":
        tilewright.accelerate(model)
    side = Side(side_name, model, example.module.make_optimizer(model))
    for _, batch in zip(range(_MEMORY_STEPS), data.batches(), strict=False):
        side.step(example, batch)
    print(json.dumps(_status_mib("VmHWM") - before))


if __name__ == "__main__":
    _report_peak(*sys.argv[1:3])

"""batch_norm and batch_norm_act on hard inputs and over a thousand steps: at most twice native's error against float64.

More than 2^24 values a channel: test_large.py.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF
from tilewright import nn
from tilewright.testing import assert_as_accurate, references

from .norm_inputs import (
    CONSTANTS,
    FINITE,
    PLACES,
    Problem,
    as_image,
    assert_equal,
    assert_same_places,
    check,
    populations,
    put,
    run,
)
from .test_batch_norm import LAST

DENSE = torch.contiguous_format
# Less than a vector, tails, more than one tile of channels, more than one block of pixels.
IMAGES = {
    "NC": ((70, 5), DENSE),
    "NC, wide": ((130, 300), DENSE),
    "NCL": ((6, 3, 11), DENSE),
    "NCHW": ((3, 4, 7, 9), DENSE),
    "NCHW, blocks": ((2, 3, 70, 75), DENSE),
    "NHWC": ((3, 4, 7, 9), LAST),
    "NHWC, blocks": ((9, 4, 33, 31), LAST),
}


def _image(image: str, x: Tensor | None = None, kind: str = "") -> Tensor:
    """An input from populations [C, N * spatial], by default those of a kind."""
    shape, memory_format = IMAGES[image]
    channels, size = shape[1], torch.Size(shape).numel() // shape[1]
    return as_image(populations(kind, channels, size) if x is None else x, shape, memory_format)


def _normal(image: str) -> Tensor:
    """Normal populations [C, N * spatial]."""
    shape, _ = IMAGES[image]
    return torch.randn(shape[1], torch.Size(shape).numel() // shape[1])


def _parameters(channels: int) -> dict[str, Tensor]:
    return {"weight": torch.randn(channels), "bias": torch.randn(channels)}


def _ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return TF.batch_norm(x, None, None, weight, bias, True)


def _native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True)


def _reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return references.batch_norm(x, None, None, weight, bias, 1e-5)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Native sums on each thread by itself, so its errors depend on how many there are; ours do not."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


# Few channels make long sums.
@pytest.mark.parametrize(
    ("image", "threads"), [*((image, 1) for image in IMAGES), ("NHWC, blocks", 2)], indirect=["threads"]
)
@pytest.mark.parametrize("kind", FINITE)
@pytest.mark.usefixtures("threads")
def test_batch_norm(isa, image, kind):
    def problem() -> Problem:
        x = _image(image, kind=kind)
        return _ours, _native, _reference, {"x": x, **_parameters(x.shape[1])}, torch.randn_like(x)

    check(problem, _normal(image).shape[1], "batch_norm")


@pytest.mark.parametrize("kind", FINITE)
@pytest.mark.parametrize("image", ["NC, wide", "NCHW, blocks", "NHWC"])
def test_batch_norm_act(isa, image, kind):
    def ours(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return TF.batch_norm_act(x, None, None, weight, bias, True, activation="relu", residual=residual)

    def problem() -> Problem:
        x = _image(image, kind=kind)
        inputs = {"x": x, **_parameters(x.shape[1]), "residual": torch.randn_like(x)}
        # At relu's kink a rounding is a jump of the gradient: whether a value passes is what our output says.
        passes = ours(**inputs) > 0

        def native(x, weight, bias, residual):
            return (_native(x, weight, bias) + residual) * passes

        def reference(x, weight, bias, residual):
            return (_reference(x, weight, bias) + residual) * passes

        return ours, native, reference, inputs, torch.randn_like(x)

    check(problem, _normal(image).shape[1], "batch_norm_act")


@pytest.mark.parametrize("value", CONSTANTS)
@pytest.mark.parametrize("image", IMAGES)
def test_constant_channels(isa, image, value):
    def problem() -> Problem:
        x = _image(image, torch.full_like(_normal(image), value))
        return _ours, _native, _reference, {"x": x, **_parameters(x.shape[1])}, torch.randn_like(x)

    _, _, _, inputs, _ = problem()
    y = _ours(**inputs)
    assert_equal(y.transpose(0, 1), inputs["bias"].view(-1, *[1] * (y.dim() - 1)), image)  # native is off by up to 1
    check(problem, _normal(image).shape[1], "batch_norm")


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("image", IMAGES)
def test_values_not_finite(isa, image, place, value):
    x = _image(image, put(_normal(image), place, value))
    inputs, dy = {"x": x, **_parameters(x.shape[1])}, torch.randn_like(x)
    assert_same_places(run(_ours, inputs, dy), run(_native, inputs, dy), "batch_norm")


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("image", IMAGES)
def test_gradients_not_finite(isa, image, place, value):
    x, dy = _image(image, _normal(image)), _image(image, put(_normal(image), place, value))
    inputs = {"x": x, **_parameters(x.shape[1])}
    assert_same_places(run(_ours, inputs, dy), run(_native, inputs, dy), "batch_norm")


# --- running statistics ---
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("memory_format", [DENSE, LAST], ids=["NCHW", "NHWC"])
def test_running_statistics_over_a_thousand_steps(isa, memory_format, momentum):
    """A channel whose mean drifts, one far from 0 and one with a small variance; None: the average of all steps."""
    shape = (6, 3, 5, 5)
    ours, native = (layer(3, momentum=momentum) for layer in (nn.BatchNorm2d, torch.nn.BatchNorm2d))
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    scale, offset = torch.tensor([1.0, 3.0, 1e-3]).view(1, 3, 1, 1), torch.tensor([0.0, 1e3, 5.0]).view(1, 3, 1, 1)
    drift = torch.tensor([0.1, 0, 0]).view(1, 3, 1, 1)
    for step in range(1, 1001):
        x = (torch.randn(shape) * scale + offset + drift * step).contiguous(memory_format=memory_format)
        ours(x), native(x)
        share = momentum or 1 / step
        values = x.double().transpose(0, 1).reshape(3, -1)
        mean += share * (values.mean(1) - mean)
        var += share * (values.var(1) - var)
    assert ours.num_batches_tracked == native.num_batches_tracked == 1000
    for channel in range(3):  # each against its own scale
        for name, expected in (("running_mean", mean), ("running_var", var)):
            pair = [getattr(layer, name)[channel] for layer in (ours, native)]
            assert_as_accurate(*pair, expected[channel], what=f"{name} of channel {channel}")

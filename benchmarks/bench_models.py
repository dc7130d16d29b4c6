"""Whole networks: a step of training, and inference, native against ``tilewright.accelerate(model)``.

Both sides start from the same weights and train on the same batch, in turn; what they compute is that of models.py.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tilewright

from . import models
from .cases import FORWARD, STEP, Case, Function, Problem, Work, dims, in_layout, randn

MODEL = (
    "step: images to a loss, gradients of all parameters, SGD with momentum; fwd: images to results in evaluation. "
    "bf16 is autocast over float32 parameters. Flops: a forward's convolutions and matrix products as torch counts "
    "them, a step three times that (up to 2 % too much: the image has no gradient). Bytes: the parameters alone, once "
    "forward and seven times in a step (read forward and backward, gradient and momentum written and read, update "
    "written)."
)

# The gate of a model: the largest error of any tensor, in norm against the same model in float64, is at most so many
# times native's own, or the floor. A gradient jumps where rounding turns a ReLU on or off. In fp32 few do and which
# side has one is chance, so the floor decides. In bf16 many do on both sides: native's gradients are half noise
# (MobileNetV2's wholly), and the gate sees only what is far worse; the single ops have closer gates.
_TIMES = 1.5
_RESULT_FLOOR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
_GRADIENT_FLOOR = 5e-2
# The norm, as a share of that of all gradients, that errors refer to at least: a bias before a batch norm has none.
_SMALL = 1e-3


@dataclass(frozen=True)
class _Network:
    """A model for images of shape NxCxS; one label for each image or each pixel."""

    name: str
    make: Callable[[int], nn.Module]
    shape: str
    classes: int
    per_pixel: bool = False

    def batch(self, layout: str) -> tuple[Tensor, Tensor]:
        """Images and labels."""
        n, channels, size = dims(self.shape)
        labels = torch.arange(n * size * size).view(n, size, size) if self.per_pixel else torch.arange(n)
        return in_layout(randn(n, channels, size, size), layout), labels % self.classes

    def native(self, layout: str, dropout: bool = True) -> nn.Module:
        """A fresh model, the same for every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.make(self.classes)
        for module in model.modules():
            if isinstance(module, nn.Dropout) and not dropout:
                module.p = 0.0
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = in_layout(parameter.data, layout)
        return model

    def forward_flops(self) -> float:
        """Of one batch, without computing it."""
        n, channels, size = dims(self.shape)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            self.make(self.classes)(torch.empty(n, channels, size, size))
        return float(counter.get_total_flops())


def _loss(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        return F.cross_entropy(model(images), labels)


def _make_step(model: nn.Module, dtype: torch.dtype) -> Function:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = _loss(model, images, labels, dtype)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _evaluating(model: nn.Module, images: Tensor) -> nn.Module:
    """In evaluation, with statistics of the batch: those of a fresh model would let values vanish layer by layer."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def _error(values: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest of any tensor, in norm, relative to the tensor's own."""
    norms = [b.norm().item() for b in exact]
    least = _SMALL * math.hypot(*norms)
    return max((a - b).norm().item() / max(n, least) for a, b, n in zip(values, exact, norms, strict=True))


def _compare(what: str, sides: Sequence[Sequence[Tensor]], floor: float) -> str:
    """sides: ours, native's, exact. Empty where ours is as accurate as it must be, else one sentence."""
    ours, native, exact = sides
    error, bar = _error(ours, exact), max(_TIMES * _error(native, exact), floor)
    return "" if error <= bar else f"{what}: relative error in norm {error:.1e}, allowed {bar:.1e}"


def _verify_step(native: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> str:
    """Loss and all gradients of a first step."""
    losses, gradients = [], []
    for model in (tilewright.accelerate(copy.deepcopy(native)), native, copy.deepcopy(native).double()):
        wide = next(model.parameters()).dtype is torch.float64
        loss = _loss(model, images.double() if wide else images, labels, torch.float64 if wide else dtype)
        losses.append([loss.detach()])
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    return _compare("loss", losses, _RESULT_FLOOR[dtype]) or _compare("gradients", gradients, _GRADIENT_FLOOR)


def _verify_results(native: nn.Module, ours: nn.Module, images: Tensor) -> str:
    with torch.no_grad():
        exact = copy.deepcopy(native).double()(images.double())
        return _compare("results", [[ours(images)], [native(images)], [exact]], _RESULT_FLOOR[images.dtype])


def _case(
    network: _Network, direction: str, dtype: torch.dtype = torch.float32, layout: str = "NCHW", quick: bool = False
) -> Case:
    def build() -> Problem:
        images, labels = network.batch(layout)
        native = network.native(layout)
        if direction == FORWARD:
            native = _evaluating(native, images)
        ours = tilewright.accelerate(copy.deepcopy(native))
        flops, parameters = network.forward_flops(), 4.0 * sum(p.numel() for p in native.parameters())
        if direction == FORWARD:
            work = {FORWARD: Work(flops, parameters)}
            return Problem([images], native, ours, work, verify=partial(_verify_results, native, ours, images))
        return Problem(
            [images, labels],
            _make_step(native, dtype),
            _make_step(ours, dtype),
            {STEP: Work(3 * flops, 7 * parameters)},
            # A model of its own: without dropout, whose masks differ.
            verify=lambda: _verify_step(network.native(layout, dropout=False), images, labels, dtype),
        )

    name = f"{network.name} {network.shape}"
    return Case("models", "model", name, build, dtype, layout, (direction,), quick, network=network.name)


_RESNET50 = _Network("ResNet-50", models.resnet50, "8x3x224", 1000)
_MOBILENET = _Network("MobileNetV2", models.mobilenet_v2, "8x3x224", 1000)
_RESNET18 = _Network("ResNet-18", models.resnet18, "8x3x224", 1000)
_UNET = _Network("U-Net", models.UNet, "8x3x128", 2, per_pixel=True)

# A row takes half a minute where a step takes a second: twelve of them, and bf16 only in the layout that it is used in.
CASES = [
    *[_case(network, STEP, layout=layout) for network in (_RESNET50, _MOBILENET) for layout in ("NCHW", "NHWC")],
    *[_case(network, STEP, torch.bfloat16, "NHWC") for network in (_RESNET50, _MOBILENET)],
    _case(_RESNET18, STEP, quick=True),
    _case(_UNET, STEP),
    *[_case(network, FORWARD, layout=layout) for network in (_RESNET50, _MOBILENET) for layout in ("NCHW", "NHWC")],
]

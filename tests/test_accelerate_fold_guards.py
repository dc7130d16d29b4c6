"""Folded models that change, and layers and calls for which nothing may be folded: what the layers give, always."""

import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

import tilewright

from .fold_cases import folding, norms_ran, pair, same, settled
from .fusion_cases import BasicBlock, ResNet
from .models import StandardizedConv


def _images() -> Tensor:
    return torch.randn(2, 4, 6, 7)


def _set(layer: nn.Module, **attributes: object) -> None:
    for name, value in attributes.items():
        setattr(layer, name, value)


@torch.no_grad()
def _write(tensor: Tensor) -> None:
    tensor.mul_(1.5)


def _other(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.linspace(0.1, 1, tensor.numel()).view_as(tensor))


def _load(model: nn.Module, assign: bool) -> None:
    torch.manual_seed(7)
    state = {name: (torch.rand(t.shape) + 0.5).to(t.dtype) for name, t in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)


def _step(model: nn.Module) -> None:
    """One of training, which writes everything."""
    torch.manual_seed(7)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    model(torch.randn(4, 4, 6, 7)).square().mean().backward()
    optimizer.step()
    model.zero_grad()
    model.eval()


@torch.no_grad()
def _norm_trains(model: nn.Module) -> None:
    """It alone: the module around it is not told."""
    for training in (True, False):
        model[1].training = training
        model(torch.ones(4, 4, 6, 7) * torch.arange(7.0))


@torch.no_grad()
def _norm_trains_uncounted(model: nn.Module) -> None:
    """It writes its statistics, and no version counter tells."""
    model[1].num_batches_tracked = None
    model(torch.ones(4, 4, 6, 7))
    _norm_trains(model)


def _past_counters(model: nn.Module) -> None:
    model[0].weight.data.mul_(2)
    model.eval()  # as before any evaluation


CHANGES = {
    "weight": lambda m: _write(m[0].weight),
    "bias": lambda m: _write(m[0].bias),
    "gamma": lambda m: _write(m[1].weight),
    "beta": lambda m: _write(m[1].bias),
    "mean": lambda m: _write(m[1].running_mean),
    "var": lambda m: _write(m[1].running_var),
    "eps": lambda m: _set(m[1], eps=0.4),
    "stride": lambda m: _set(m[0], stride=(2, 2)),
    "new weight": lambda m: _set(m[0], weight=_other(m[0].weight)),
    "new data": lambda m: _set(m[0].weight, data=_other(m[0].weight).data),
    "the same data, turned": lambda m: _set(m[0].weight, data=m[0].weight.data.transpose(2, 3)),
    "new statistics": lambda m: _set(m[1], running_mean=torch.ones(6)),
    "no bias": lambda m: _set(m[0], bias=None),
    "no gamma": lambda m: _set(m[1], weight=None),
    "half and back": lambda m: m.half().float(),
    "float64": lambda m: m.double(),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "loaded": lambda m: _load(m, assign=False),
    "assigned": lambda m: _load(m, assign=True),
    "reset": lambda m: m[1].reset_running_stats(),
    "a step": _step,
    "norm trains": _norm_trains,
    "norm trains alone": lambda m: (m[1].train()(torch.ones(2, 6, 3, 3).cumsum(3)), m[1].eval()),
    "norm trains uncounted": _norm_trains_uncounted,
    "past counters": _past_counters,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_between_calls(change):
    native, x = pair(), _images()
    ours = folding(native)
    same(ours, native, x)
    for model in (ours, native):
        CHANGES[change](model)
    for _ in range(2):
        same(ours, native, x.to(native[0].weight.dtype))


class DoublingNorm(nn.BatchNorm2d):
    """Overrides forward: never one of ours."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def _replace(model: nn.Module, index: int, kind: type[nn.Module], *arguments: int) -> None:
    torch.manual_seed(7)
    model[index] = settled(kind(*arguments))


def _own_weight(conv: nn.Module) -> None:
    weight = conv.weight.detach()
    del conv.weight
    conv.weight = weight


UNFOLDABLE = {
    "norm in training": lambda m: m[1].train(),
    "no statistics": lambda m: _set(m[1], running_mean=None, running_var=None),
    "hook of the convolution": lambda m: m[0].register_forward_hook(lambda m, x, y: y * 2),
    "hook before the convolution": lambda m: m[0].register_forward_pre_hook(lambda m, x: (x[0] * 2,)),
    "hook of the norm": lambda m: m[1].register_forward_hook(lambda m, x, y: y * 2),
    "hook before the norm": lambda m: m[1].register_forward_pre_hook(lambda m, x: (x[0] * 2,)),
    "weight_norm": lambda m: parametrizations.weight_norm(m[0]),
    "weight_norm by hooks": lambda m: weight_norm(m[0]),
    "pruned": lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
    "parametrized norm": lambda m: torch.nn.utils.parametrize.register_parametrization(m[1], "weight", nn.Tanh()),
    "weight that is no parameter": lambda m: _own_weight(m[0]),
    "gamma that is no parameter": lambda m: _own_weight(m[1]),
    "forward of the object": lambda m: _set(m[0], forward=lambda x: x[:, :1].expand(-1, 6, -1, -1)),
    "subclass of Conv2d": lambda m: _replace(m, 0, StandardizedConv, 4, 6, 3),
    "subclass of BatchNorm2d": lambda m: _replace(m, 1, DoublingNorm, 6),
    "an activation between": lambda m: m.insert(1, nn.Tanh()),
    "convolution of another type": lambda m: m[0].bfloat16(),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("change", UNFOLDABLE)
def test_not_folded(change, before):
    native, x = settled(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())), _images()
    ours = copy.deepcopy(native) if before else folding(native)
    for model in (ours, native):
        UNFOLDABLE[change](model)
    if before:
        tilewright.accelerate(ours, fold=True)
    same(ours, native, x.to(native[0].weight.dtype), folds=False)


class Read(nn.Module):
    """A convolution or its norm, read in other ways than one behind the other; or written into beforehand."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.conv(x)
        if self.how == "read twice":
            return self.norm(y) * y
        if self.how == "its own residual":
            return torch.relu(self.norm(y) + y)
        if self.how == "written into":
            return self.norm(y.mul_(2))
        if self.how == "input written behind it":
            x.mul_(2)
            return self.norm(y) + x
        if self.how == "input written before the sum":
            z = self.norm(y)
            return torch.relu(z + x.mul_(2))
        return torch.relu(self.norm(y) + self.other(x))


@pytest.mark.parametrize(
    ("how", "folds"),
    [
        ("read twice", False),
        ("its own residual", False),
        ("written into", False),
        ("input written behind it", False),
        ("input written before the sum", False),
        ("past another convolution", True),
    ],
)
def test_convolutions_with_other_readers(how, folds):
    native, x = settled(Read(how)), _images()
    same(folding(native), native, x, folds)


class Shared(nn.Module):
    """One convolution with two norms, and both layers of a pair called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(4, 4, 1), nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.pair = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.tied = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.tied[0].weight = self.pair[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(self.conv(x)).relu()
        return self.tied(self.pair(self.pair(x)))


def test_shared_layers_and_weights():
    """Nothing is written, so each pair has a copy of its own."""
    native, x = settled(Shared()), _images()
    ours = folding(native)
    same(ours, native, x)
    for model in (ours, native):
        _write(model.conv.weight)
        _write(model.pair[0].weight)
        _write(model.norms[1].running_var)
    same(ours, native, x)


@pytest.mark.parametrize("kind", ["channels", "dimensions", "type", "norm's size", "kernel"])
def test_errors_are_the_layers(kind):
    native, x = pair(), _images()
    with torch.no_grad():
        folding(native)(x)
    if kind == "norm's size":
        native[1] = settled(nn.BatchNorm2d(1))
    x = {"channels": x[:, :3], "dimensions": x[0], "type": x.double(), "kernel": x[..., :2]}.get(kind, x)
    ours, raised = folding(native), []
    for model in (ours, native):
        with torch.no_grad(), pytest.raises((RuntimeError, ValueError)) as info:
            model(x)
        raised.append(info.type)
    assert raised[0] is raised[1]


@pytest.mark.parametrize(
    ("dtype", "gamma", "weight"), [(torch.float16, 1e-6, 0.1), (torch.float16, 1e4, 10.0), (torch.float32, 1e38, 10.0)]
)
def test_weights_that_their_type_can_not_hold(dtype, gamma, weight):
    native, x = pair(bias=False), torch.zeros(2, 4, 6, 7, dtype=dtype)
    with torch.no_grad():
        native[0].weight.fill_(weight)
        native[1].weight.fill_(gamma)
        native[1].running_mean.zero_()
    native = native.to(dtype)
    same(folding(native), native, x, folds=False)


def test_switching_between_training_and_evaluation():
    native, x = settled(ResNet(BasicBlock)), torch.randn(4, 3, 8, 8)
    ours = folding(native)
    for _ in range(3):
        same(ours, native, x)
        for model in (ours, native):
            model.train()
        with torch.no_grad():
            torch.testing.assert_close(ours(x), native(x), rtol=1e-4, atol=1e-5)
        for model in (ours, native):
            model.eval()
        for a, b in zip(ours.buffers(), native.buffers(), strict=True):
            torch.testing.assert_close(a, b)


def test_threads_that_fold_at_once():
    native, x, results = settled(ResNet(BasicBlock)), torch.randn(2, 3, 8, 8), []
    ours = folding(native)

    def run() -> None:
        with torch.no_grad():
            results.extend(ours(x) for _ in range(3))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 9
    assert all(torch.equal(y, results[0]) for y in results)
    assert not norms_ran(ours, x)

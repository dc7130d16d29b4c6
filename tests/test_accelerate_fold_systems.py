"""Folded models under autograd, torch.func and modes: the layers run where anybody could tell the difference."""

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import tilewright
from tilewright._fusion_plans import BOX

from .fold_cases import folding, pair, same, settled
from .fusion_cases import BasicBlock, ResNet


@pytest.fixture
def nets() -> tuple[nn.Module, nn.Module, Tensor]:
    """One that folds and has folded, the native one, and a batch."""
    native, x = settled(ResNet(BasicBlock)), torch.randn(2, 3, 8, 8)
    ours = folding(native)
    same(ours, native, x)
    return ours, native, x


def _gradients(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


def _norms(function: object) -> int:
    """How often batch norms ran on their own."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        function()
    return sum(event.count for event in profiler.key_averages() if event.key == "tilewright::batch_norm_forward")


def test_gradients_are_those_without_fold(nets):
    ours, native, x = nets
    unfolded = tilewright.accelerate(copy.deepcopy(native))
    for a, b in zip(_gradients(ours, x), _gradients(unfolded, x), strict=True):
        assert torch.equal(a, b)


def test_one_parameter_that_requires_a_gradient(nets):
    """Keeps its own pair from folding, and no other."""
    ours, native, x = nets
    for model in (ours, native):
        model.requires_grad_(False)
        model.layer1[0].bn2.bias.requires_grad_()
    assert _norms(lambda: ours(x)) == 1
    for a, b in zip(_gradients(ours, x), _gradients(native, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_frozen_parameters_fold_and_give_the_input_its_gradient(nets):
    ours, native, x = nets
    ours.eval()
    with torch.inference_mode():
        ours(x)  # what is folded here is saved for backward below
    for model in (ours, native):
        model.requires_grad_(False)
    assert _norms(lambda: ours(x.clone().requires_grad_())) == 0
    torch.testing.assert_close(_gradients(ours, x)[:2], _gradients(native, x)[:2], rtol=1e-3, atol=1e-4)
    results = []
    for model in (ours, native):
        t = x.clone().requires_grad_()
        first = torch.autograd.grad(model(t).sin().sum(), t, create_graph=True)[0]
        results.append(torch.autograd.grad(first.square().sum(), t)[0])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_forward_derivatives(nets):
    ours, native, x = nets
    direction, results = torch.randn(x.shape), []
    for model in (ours, native):
        tangents = {name: torch.ones_like(p) for name, p in model.named_parameters()}
        results.append([*jvp(model, (x,), (direction,)), vmap(lambda t, model=model: model(t[None])[0])(x)])
        with forward_ad.dual_level():
            dual = {name: forward_ad.make_dual(p, tangents[name]) for name, p in model.named_parameters()}
            results[-1] += forward_ad.unpack_dual(functional_call(model, dual, (x,)))
            results[-1] += forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_parameters_of_one_call(nets):
    ours, native, x = nets
    for scale in (0.5, 2.0):
        for kind in (torch.Tensor, nn.Parameter):
            given = {name: kind(p.detach() * scale) for name, p in native.named_parameters()}
            y = functional_call(ours, given, (x,))
            torch.testing.assert_close(y, functional_call(native, given, (x,)), rtol=1e-4, atol=1e-5)
    same(ours, native, x)


class Watching(TorchDispatchMode):
    """Notes what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_autocast_and_modes_that_watch(nets):
    ours, native, x = nets
    with torch.autocast("cpu", torch.bfloat16):
        assert _norms(lambda: ours(x)) == 8
        torch.testing.assert_close(ours(x), native(x), rtol=4e-2, atol=4e-2)
    with forward_ad.dual_level():
        assert _norms(lambda: ours(x)) == 8
    with Watching() as watching:
        ours(x)
    assert sum("batch_norm" in name for name in watching.seen) == 8
    traced = torch.fx.experimental.proxy_tensor.make_fx(ours)(x)
    torch.testing.assert_close(traced(x), native(x), rtol=1e-4, atol=1e-5)
    same(ours, native, x)


def test_layers_made_in_inference_mode():
    """Their tensors have no version counters."""
    with torch.inference_mode():
        native = pair()
        ours = folding(native)
        same(ours, native, torch.randn(2, 4, 6, 6), folds=False)


@pytest.mark.usefixtures("process_group")
def test_data_parallel(nets):
    ours, native, x = nets
    wrapped = nn.parallel.DistributedDataParallel(ours)
    for mode in (True, False):
        for model in (wrapped, native):
            model.train(mode)
            model.zero_grad()
        for a, b in zip(_gradients(wrapped, x), _gradients(native, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    same(wrapped, native, x)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("blocks", [False, True])
@torch.no_grad()
def test_sharded_parameters(nets, blocks):
    """Which are gathered into the same memory at every call."""
    ours, native, x = nets
    for block in (*ours.layer1, *ours.layer2) if blocks else ():
        fully_shard(block, reshard_after_forward=True)
    fully_shard(ours, reshard_after_forward=True)
    for _ in range(2):
        same(ours, native, x, folds=False)
        for p, q in zip(ours.parameters(), native.parameters(), strict=True):
            p.to_local().mul_(1.1)
            q.mul_(1.1)


def _folds(model: nn.Module) -> list[weakref.ref]:
    boxes = [vars(m)[BOX] for m in model.modules() if BOX in vars(m)]
    return [weakref.ref(fold) for box in boxes for fold in box.folds._known.values()]


def _alive(references: list[weakref.ref]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in references)


@torch.no_grad()
def test_folded_weights_are_dropped(nets):
    """With a layer that is replaced, by train(), and by restore."""
    ours, _, x = nets
    folds, conv = _folds(ours), weakref.ref(ours.layer1[0].conv1)
    assert _alive(folds) == 8
    ours.layer1[0].conv1 = tilewright.accelerate(nn.Conv2d(4, 4, 3, padding=1))
    ours(x)
    assert _alive(folds) == 7
    assert _alive([conv]) == 0
    ours.train()
    assert _alive(folds) == 0
    ours.eval()(x)
    folds = _folds(ours)
    assert _alive(folds) == 8
    tilewright.restore(ours)
    assert _alive(folds) == 0


class Fitting(nn.Module):
    """Whose train is a method of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.seen = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), []

    def train(self, data: object = True, *, epochs: int = 1) -> "Fitting":
        self.seen.append((data, epochs))
        return super().train(bool(data))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def test_train_is_the_users():
    native, x = settled(Fitting()), torch.randn(2, 4, 6, 6)
    ours = folding(native)
    for _ in range(2):
        same(ours, native, x)
        for model in (ours, native):
            assert model.train([1, 2], epochs=3) is model
            assert model.norm.training
            model.eval()
            assert model.seen[-2:] == [([1, 2], 3), (False, 1)]

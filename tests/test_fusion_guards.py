"""Fused modules that change after they were traced: what their own forward gives, at every call."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tilewright
from tilewright._fusion import Fused
from tilewright.testing import ops_called

from .fusion_cases import BasicBlock, FunctionalBlock, SlottedBlock
from .fusion_forwards import assert_same, assert_same_steps, fused_block, module_with, relu_ran


def test_a_fused_block_runs_no_relu():
    fused, native, x = fused_block()
    assert not relu_ran(lambda: fused(x))
    assert relu_ran(lambda: native(x))
    assert_same(fused, native, x)


SWITCH = "relu"

HOOKS = {
    "forward": lambda layer, seen: layer.register_forward_hook(lambda *_: seen.append("ran")),
    "changing": lambda layer, seen: layer.register_forward_hook(lambda m, args, y: seen.append("ran") or y + 1),
    "pre": lambda layer, seen: layer.register_forward_pre_hook(lambda *_: seen.append("ran")),
    "backward": lambda layer, seen: layer.register_full_backward_hook(lambda *_: seen.append("ran")),
    "backward pre": lambda layer, seen: layer.register_full_backward_pre_hook(lambda *_: seen.append("ran")),
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_run(kind, layer, before):
    """On a layer that stays one, on the norm and on the ReLU; registered before accelerate and after."""
    native, seen = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), []
    fused, x = copy.deepcopy(native), torch.randn(2, 3, 5, 5, requires_grad=True)
    if before:
        handle = HOOKS[kind](fused[layer], seen)
    tilewright.accelerate(fused)
    assert isinstance(fused, Fused)
    if not before:
        handle = HOOKS[kind](fused[layer], seen)
    HOOKS[kind](native[layer], [])
    assert_same(fused, native, x)
    fused(x).sum().backward()
    assert seen == ["ran"] * (1 if "backward" in kind else 2)
    assert relu_ran(lambda: fused(x)) == (layer > 0)
    handle.remove()
    assert not relu_ran(lambda: fused(x))


def test_hooks_of_a_shared_relu_run_for_each_of_its_calls():
    fused, native, x = fused_block()
    seen = []
    for model in (fused, native):
        model.relu.register_forward_hook(lambda m, args, y: seen.append(1) or y * 2)
    assert_same(fused, native, x)
    assert len(seen) == 4


def test_global_hooks_run():
    fused, _, x = fused_block()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, y: seen.append(type(module).__name__))
    fused(x)
    handle.remove()
    assert seen.count("ReLU") == 2
    assert seen.count("BatchNorm2d") == 3


@pytest.mark.parametrize("freeze", [["bn1"], ["bn2"], ["bn1", "bn2", "downsample"]])
def test_frozen_statistics_in_a_training_block(freeze):
    fused, native, x = fused_block()
    for model in (fused, native):
        for name in freeze:
            getattr(model, name).eval()
    assert_same(fused, native, x)
    assert not relu_ran(lambda: fused(x))


def _set(module: nn.Module, **attributes: object) -> None:
    for name, value in attributes.items():
        setattr(module, name, value)


def _same_norm() -> nn.Module:
    torch.manual_seed(9)
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.weight)
    return norm


CHANGES = {
    "norm replaced by a native one": lambda m: _set(m, bn1=_same_norm()),
    "norm replaced by ours": lambda m: _set(
        m, bn1=tilewright.accelerate(_same_norm()) if isinstance(m, Fused) else _same_norm()
    ),
    "norm taken out": lambda m: _set(m, bn2=nn.Identity()),
    "another activation": lambda m: _set(m, relu=nn.GELU()),
    "norm's settings": lambda m: _set(m.bn1, momentum=None, eps=0.3),
    "no running statistics": lambda m: _set(m.bn2, running_mean=None, running_var=None, track_running_stats=False),
    "norm without weight": lambda m: _set(m.bn2, weight=None, bias=None),
    "forward of a layer": lambda m: _set(m.bn1, forward=lambda x: x * 2),
    "forward of the block": lambda m: _set(m, forward=lambda x: m.conv1(x) * 3),
    "class of the activation": lambda m: _set(m.relu, __class__=nn.Tanh),
    "in eval": lambda m: m.eval(),
    "in float64 and back": lambda m: m.double().float(),
    "new parameters": lambda m: _set(m.bn1, weight=nn.Parameter(torch.full((6,), 0.7))),
}


@pytest.mark.parametrize("after_a_call", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_after_accelerate(change, after_a_call):
    native = BasicBlock(4, 6, 1)
    fused, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(3, 4, 6, 6)
    if after_a_call:
        assert_same(fused, native, x)
    for model in (fused, native):
        CHANGES[change](model)
    assert_same(fused, native, x)
    assert_same(fused.eval(), native.eval(), x)


def test_a_downsample_that_comes_and_goes():
    native = BasicBlock(4, 4)
    fused, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(3, 4, 6, 6)
    layer = nn.Conv2d(4, 4, 1)
    for downsample in (None, layer, None, nn.Tanh(), layer):
        for model in (fused, native):
            model.downsample = downsample
        assert_same(fused, native, x)
        assert not relu_ran(lambda: fused(x))
        native(x)


def test_slots_that_are_filled():
    native = SlottedBlock(4)
    fused, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(3, 4, 6, 6)
    for slot in ("drop_block", "drop_path", "se", "downsample"):
        assert_same(fused, native, x)
        for model in (fused, native):
            setattr(model, slot, nn.Tanh())
    for model in (fused, native):
        model.drop_path = nn.Identity()
        model.drop_path.register_forward_hook(lambda m, args, y: y * 2)
    assert_same(fused, native, x)


def test_children_of_containers_replaced():
    native = FunctionalBlock()
    fused, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(2, 4, 5, 5)
    assert_same(fused, native, x)
    for model in (fused, native):
        model.norms["b"] = nn.Identity()
        model.convs[3] = nn.Identity()
        model.act = torch.tanh
    assert_same(fused, native, x)


def test_a_sequential_that_grows_shrinks_and_is_sliced():
    native = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    fused, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(2, 3, 4, 4)
    for change in (lambda m: m.append(nn.Tanh()), lambda m: m.pop(2), lambda m: m.insert(1, nn.Conv2d(4, 4, 1))):
        torch.manual_seed(1)
        change(native)
        torch.manual_seed(1)
        change(fused)
        assert_same(fused, native, x)
    assert_same(fused[:2], native[:2], x)


def test_the_range_of_a_relu6_that_changes():
    native = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU6()).eval()
    fused, x = tilewright.accelerate(copy.deepcopy(native)), 9 * torch.randn(2, 3, 4, 4)
    for model in (fused, native):
        nn.init.constant_(model[1].weight, 9.0)
    assert_same(fused, native, x)
    assert "aten::hardtanh" not in ops_called(lambda: fused(x))
    for model in (fused, native):
        model[2].max_val = 3.0
    assert_same(fused, native, x)
    assert "aten::hardtanh" in ops_called(lambda: fused(x))
    for model in (fused, native):
        model[2].max_val = torch.tensor(6.0)
    assert_same(fused, native, x)
    for model in (fused, native):
        model[2].max_val.fill_(3.0)
    assert_same(fused, native, x)


def test_a_global_that_changes(monkeypatch):
    def forward(self, x):
        return self.core(x) if SWITCH == "relu" else torch.tanh(self.norm(x))

    native = module_with(forward)
    ours, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(5, 4)
    assert isinstance(ours, Fused)
    assert_same_steps(ours, native, x)
    monkeypatch.setitem(globals(), "SWITCH", "tanh")
    assert_same_steps(ours, native, x)


def _activation(x: Tensor) -> Tensor:
    return torch.relu(x)


class Helped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def tail(self, x: Tensor) -> Tensor:
        return _activation(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.norm(x))


def test_code_that_changes(monkeypatch):
    native = Helped()
    fused, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(5, 4)
    assert isinstance(fused, Fused)
    assert_same(fused, native, x)
    monkeypatch.setitem(globals(), "_activation", torch.tanh)
    assert_same(fused, native, x)
    monkeypatch.setattr(Helped, "tail", lambda self, x: x * 2)
    assert_same(fused, native, x)
    monkeypatch.setattr(Helped, "forward", lambda self, x: self.norm(x) * 3)
    assert_same(fused, native, x)
    fused.tail = native.tail = lambda x: x * 4
    monkeypatch.undo()
    assert_same(fused, native, x)


class _Registry(nn.Module):
    known: list = []  # noqa: RUF012

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        _Registry.known.append(cls)


class Registered(_Registry):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x))


def test_classes_that_want_to_know_of_subclasses_are_left():
    ours = tilewright.accelerate(Registered())
    assert type(ours) is Registered
    assert _Registry.known == [Registered]

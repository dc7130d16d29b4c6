"""Forwards that no graph can stand for: accelerate must leave them alone, untouched by the attempt."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright
from tilewright._fusion import Fused

from .fusion_forwards import Forwards, assert_same_steps, module_with

CALLS: list[int] = []
SETTINGS = {"act": "relu"}
refused = Forwards()


@refused
def writes_attribute(self, x):
    self.calls += 1
    return self.core(x)


@refused
def appends(self, x):
    self.kept.append(x)
    return self.core(x)


@refused
def global_list(self, x):
    CALLS.append(1)
    return self.core(x)


@refused
def global_dict(self, x):
    return self.core(x) if SETTINGS["act"] == "relu" else x


@refused
def no_grad(self, x):
    with torch.no_grad():
        y = self.lin(x)
    return self.core(x + y)


@refused
@torch.no_grad()
def decorated(self, x):
    return self.core(self.lin(x))


@refused
def autocast(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = self.lin(x)
    return self.core(y.float())


@refused
def grad_mode(self, x):
    return self.core(x) if torch.is_grad_enabled() else x


@refused
def python_random(self, x):
    return self.core(x) * random.random()


@refused
def torch_random(self, x):
    return self.core(x) * torch.rand(1)


@refused
def random_branch(self, x):
    return self.core(x) if torch.rand(()) < 0.5 else self.core(-x)


@refused
def item(self, x):
    return self.core(x) * x.sum().item() if False else self.core(x) * float(x.sum())


@refused
def shape(self, x):
    return self.core(x) if x.shape[0] > 3 else x


@refused
def dim(self, x):
    return self.core(x) if x.dim() == 2 else x


@refused
def instance(self, x):
    return self.core(x) if isinstance(x, Tensor) else x


@refused
def computed_instance(self, x):
    y = self.lin(x)
    return self.core(x) if isinstance(y, Tensor) else x


@refused
def kind(self, x):
    return self.core(x) if type(x) is Tensor else x


@refused
def length(self, x):
    return self.core(x) * len(x)


@refused
def loop(self, x):
    return self.core(torch.stack([row * 2 for row in x]))


@refused
def has(self, x):
    return self.core(x) if hasattr(x, "shape") else x


@refused
def caught(self, x):
    try:
        y = x * 2 if x.sum() > 0 else x
    except Exception:
        y = x
    return self.core(y)


@refused
def caught_outside(self, x):
    return self.core(_quiet(x))


def _quiet(x):
    try:
        return x if x.sum() > 0 else -x
    except ValueError:
        return x * 0


@refused
def maybe_none(self, x):
    y = self.inner(x)
    return self.core(x) if y is None else self.core(x) + y


@refused
def identity(self, x):
    y = self.drop(x)
    return self.core(x) if y is x else self.core(-x)


@refused
def tensor_attribute(self, x):
    return self.core(x) * self.scale


@refused
def constant(self, x):
    return self.core(x) * torch.ones(4)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


@refused
def own_gradient(self, x):
    return self.core(_Double.apply(self.lin(x)))


@refused
def checkpointed(self, x):
    return self.core(torch.utils.checkpoint.checkpoint(self.lin, x, use_reentrant=False))


@refused
def hooked(self, x):
    y = self.lin(x)
    y.register_hook(lambda g: g * 2) if y.requires_grad else None
    return self.core(y)


@refused
def prints(self, x):
    print("forward")
    return self.core(x)


@refused
def local_import(self, x):
    from torch.nn.functional import relu

    return relu(self.norm(x))


@refused
def assigns_item(self, x):
    x = x.clone()
    x[0] = 0
    return self.core(x)


@refused
def child_forward(self, x):
    return F.relu(self.norm.forward(x))


class _Config:
    act = "relu"


@refused
def class_setting(self, x):
    return self.core(x) if _Config.act == "relu" else x


@refused
def own_class(self, x):
    return self.core(x) * len(self.__class__.__mro__)


@refused
def default_list(self, x, seen=[]):  # noqa: B006
    seen.append(1)
    return self.core(x)


def _counted(x, seen=[]):  # noqa: B006
    seen.append(1)
    return x * 1


@refused
def default_of_a_helper(self, x):
    return self.core(_counted(x))


@refused
def torch_setting(self, x):
    return self.core(x) if torch.backends.mkldnn.enabled else x


@refused
def module_setting(self, x):
    return self.core(x) * random.TWOPI


@pytest.mark.parametrize("name", refused)
def test_refused(name):
    native = module_with(refused[name])
    ours, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(5, 4)
    assert not isinstance(ours, Fused)
    assert "_standing" not in str(vars(ours))
    assert ours.calls == 0
    assert ours.kept == []
    assert set(vars(ours)) == set(vars(native))
    assert_same_steps(ours, native, x)
    for model in (ours, native):
        model.inner.gives = True
    assert_same_steps(ours, native, x)

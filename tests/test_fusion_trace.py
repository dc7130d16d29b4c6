"""What accelerate must not fuse: forwards that decide by values, have side effects, or write between the steps."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tilewright
from tilewright import _fusion
from tilewright._fusion import Fused

SWITCH = "relu"
CALLS: list[int] = []
SETTINGS = {"act": "relu"}


class _Base(nn.Module):
    """x -> relu(norm(x)) around whatever a test adds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.lin = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.0)
        self.end = nn.LayerNorm(4)
        self.inner = _Unpredictable()
        self.calls, self.kept, self.scale = 0, [], torch.ones(4)

    def core(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x))


class _Unpredictable(nn.Module):
    """A child whose result is sometimes None."""

    def __init__(self) -> None:
        super().__init__()
        self.gives = False

    def forward(self, x: Tensor) -> Tensor | None:
        return x if self.gives else None


def _writes_attribute(self, x):
    self.calls += 1
    return self.core(x)


def _appends(self, x):
    self.kept.append(x)
    return self.core(x)


def _global_list(self, x):
    CALLS.append(1)
    return self.core(x)


def _global_dict(self, x):
    return self.core(x) if SETTINGS["act"] == "relu" else x


def _no_grad(self, x):
    with torch.no_grad():
        y = self.lin(x)
    return self.core(x + y)


@torch.no_grad()
def _decorated(self, x):
    return self.core(self.lin(x))


def _autocast(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = self.lin(x)
    return self.core(y.float())


def _grad_mode(self, x):
    return self.core(x) if torch.is_grad_enabled() else x


def _python_random(self, x):
    return self.core(x) * random.random()


def _torch_random(self, x):
    return self.core(x) * torch.rand(1)


def _random_branch(self, x):
    return self.core(x) if torch.rand(()) < 0.5 else self.core(-x)


def _item(self, x):
    return self.core(x) * x.sum().item() if False else self.core(x) * float(x.sum())


def _shape(self, x):
    return self.core(x) if x.shape[0] > 3 else x


def _dim(self, x):
    return self.core(x) if x.dim() == 2 else x


def _instance(self, x):
    return self.core(x) if isinstance(x, Tensor) else x


def _computed_instance(self, x):
    y = self.lin(x)
    return self.core(x) if isinstance(y, Tensor) else x


def _kind(self, x):
    return self.core(x) if type(x) is Tensor else x


def _length(self, x):
    return self.core(x) * len(x)


def _loop(self, x):
    return self.core(torch.stack([row * 2 for row in x]))


def _has(self, x):
    return self.core(x) if hasattr(x, "shape") else x


def _caught(self, x):
    try:
        y = x * 2 if x.sum() > 0 else x
    except Exception:
        y = x
    return self.core(y)


def _caught_outside(self, x):
    return self.core(_quiet(x))


def _quiet(x):
    try:
        return x if x.sum() > 0 else -x
    except ValueError:
        return x * 0


def _maybe_none(self, x):
    y = self.inner(x)
    return self.core(x) if y is None else self.core(x) + y


def _identity(self, x):
    y = self.drop(x)
    return self.core(x) if y is x else self.core(-x)


def _tensor_attribute(self, x):
    return self.core(x) * self.scale


def _constant(self, x):
    return self.core(x) * torch.ones(4)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def _own_gradient(self, x):
    return self.core(_Double.apply(self.lin(x)))


def _checkpointed(self, x):
    return self.core(torch.utils.checkpoint.checkpoint(self.lin, x, use_reentrant=False))


def _hooked(self, x):
    y = self.lin(x)
    y.register_hook(lambda g: g * 2) if y.requires_grad else None
    return self.core(y)


def _prints(self, x):
    print("forward")
    return self.core(x)


def _local_import(self, x):
    from torch.nn.functional import relu

    return relu(self.norm(x))


def _assigns_item(self, x):
    x = x.clone()
    x[0] = 0
    return self.core(x)


def _child_forward(self, x):
    return F.relu(self.norm.forward(x))


class _Config:
    act = "relu"


def _class_setting(self, x):
    return self.core(x) if _Config.act == "relu" else x


def _own_class(self, x):
    return self.core(x) * len(self.__class__.__mro__)


def _default_list(self, x, seen=[]):  # noqa: B006
    seen.append(1)
    return self.core(x)


def _counted(x, seen=[]):  # noqa: B006
    seen.append(1)
    return x * 1


def _default_of_a_helper(self, x):
    return self.core(_counted(x))


def _torch_setting(self, x):
    return self.core(x) if torch.backends.mkldnn.enabled else x


def _module_setting(self, x):
    return self.core(x) * random.TWOPI


REFUSED = {
    name[1:]: function
    for name, function in list(globals().items())
    if name.startswith("_")
    and callable(function)
    and not isinstance(function, type)
    and name not in ("_quiet", "_counted")
    if getattr(function, "__module__", "") == __name__ or name == "_decorated"
}


def _with(forward: object) -> nn.Module:
    kind = type("Case", (_Base,), {"forward": forward, "__module__": __name__})
    globals()["Case"] = kind
    return kind()


def _assert_same(ours: nn.Module, native: nn.Module, x: Tensor) -> None:
    for grad in (True, False, True):
        results = [_step(model, x, grad) for model in (ours, native)]
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _step(model: nn.Module, x: Tensor, grad: bool) -> tuple[Tensor | None, ...]:
    """Output, gradients and the argument afterwards; nothing where autograd refuses what the forward does."""
    torch.manual_seed(3)
    random.seed(3)
    model.zero_grad()
    t = x.clone().requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        y = model(t)
    try:
        if y.requires_grad:
            y.square().sum().backward()
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        return ()
    return (y.detach(), t.grad, t.detach(), *(p.grad for p in model.parameters()))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    native = _with(REFUSED[name])
    ours, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(5, 4)
    assert not isinstance(ours, Fused)
    assert "_standing" not in str(vars(ours))
    assert ours.calls == 0
    assert ours.kept == []
    assert set(vars(ours)) == set(vars(native))
    _assert_same(ours, native, x)
    for model in (ours, native):
        model.inner.gives = True
    _assert_same(ours, native, x)


# Steps that are read by others or written into on the way: not fused, or only where that is right.


def _read_twice(self, x):
    y = self.norm(x)
    return F.relu(y) + y


def _sum_read_twice(self, x):
    y = self.norm(self.lin(x)) + x
    return F.relu(y) + y


def _writes_residual(self, x):
    y = self.norm(self.lin(x))
    r = x * 2
    r.mul_(3)
    return F.relu(y + r)


def _writes_source(self, x):
    s = x * 2
    y = self.norm(s)
    s.mul_(3)
    return F.relu(y + s)


def _writes_source_alias(self, x):
    s = x * 2
    y = self.norm(s.view(-1, 4))
    s += 1
    return F.relu(y + s)


def _inplace_residual(self, x):
    r = x * 2
    alias = r.view(-1)
    r += self.norm(x)
    return F.relu(r) + alias.view(-1, 4)


def _adds_to_argument(self, x):
    y = x * 1
    z = self.lin(y)
    y += self.drop(z)
    return self.end(y)


def _dropout_in_between(self, x):
    a = self.drop(self.lin(x))
    b = F.dropout(x, 0.5, self.training)
    return self.end(a + b)


def _sum_written_before_norm(self, x):
    s = x + self.drop(self.lin(x))
    t = s * 2
    s.add_(1)
    return self.end(s) + t


def _norm_of_an_alias(self, x):
    s = x + self.drop(self.lin(x))
    v = s.view(-1, 4)
    v.mul_(2)
    return self.end(s) + s


def _same_norm_in_between(self, x):
    a = self.norm(self.lin(x))
    b = self.norm(x)
    return F.relu(a + b)


def _statistics_in_between(self, x):
    a = self.norm(self.lin(x))
    m = self.norm.running_mean * 1
    return F.relu(a + x) + m


def _operand_twice(self, x):
    y = self.norm(x)
    return F.relu(y + y)


def _relu_written_after(self, x):
    y = self.norm(x)
    z = F.relu(y)
    y.add_(1)
    return z + y


HAZARDS = {
    name[1:]: function
    for name, function in list(globals().items())
    if name.startswith("_") and callable(function) and not isinstance(function, type) and name[1:] not in REFUSED
    if name not in ("_quiet", "_counted", "_with", "_assert_same", "_step")
    and getattr(function, "__module__", "") == __name__
}
FUSES = {"writes_residual": 1, "same_norm_in_between": 1, "sum_written_before_norm": 1, "norm_of_an_alias": 1}


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", HAZARDS)
def test_hazards(name, training, p):
    native = tilewright.accelerate(_with(HAZARDS[name]).train(training), fuse=False)
    native.drop.p = p
    ours, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(5, 4)
    plan = _fusion.fuse(copy.deepcopy(native))
    assert len(plan.fusions) == FUSES.get(name, 0), plan.fusions
    _assert_same(ours, native, x)
    for (key, a), (_, b) in zip(ours.named_buffers(), native.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, key=key: f"{key}: {text}")


def test_a_global_that_changes(monkeypatch):
    def forward(self, x):
        return self.core(x) if SWITCH == "relu" else torch.tanh(self.norm(x))

    native = _with(forward)
    ours, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(5, 4)
    assert isinstance(ours, Fused)
    _assert_same(ours, native, x)
    monkeypatch.setitem(globals(), "SWITCH", "tanh")
    _assert_same(ours, native, x)


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

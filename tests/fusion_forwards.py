"""What the tests of fusion share: modules whose forward a test brings, a fused block, comparisons with native."""

import copy
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tilewright
from tilewright._fusion import Fused
from tilewright.testing import ops_called

from .fusion_cases import BasicBlock


class Forwards(dict):
    """Forwards by name, registered by decorating them."""

    def __call__(self, function):
        self[function.__name__] = function
        return function


class Base(nn.Module):
    """x -> relu(norm(x)) around whatever a test adds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.lin = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.0)
        self.end = nn.LayerNorm(4)
        self.inner = Unpredictable()
        self.calls, self.kept, self.scale = 0, [], torch.ones(4)

    def core(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x))


class Unpredictable(nn.Module):
    """A child whose result is sometimes None."""

    def __init__(self) -> None:
        super().__init__()
        self.gives = False

    def forward(self, x: Tensor) -> Tensor | None:
        return x if self.gives else None


def module_with(forward: object) -> nn.Module:
    return type("Case", (Base,), {"forward": forward})()


def assert_same_steps(ours: nn.Module, native: nn.Module, x: Tensor) -> None:
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


def fused_block() -> tuple[nn.Module, nn.Module, Tensor]:
    """A residual block fused, the same one native, and a batch."""
    native = BasicBlock(4, 6, 2)
    fused = tilewright.accelerate(copy.deepcopy(native))
    assert isinstance(fused, Fused)
    return fused, native, torch.randn(3, 4, 8, 8)


def relu_ran(function: object) -> bool:
    """Whether a ReLU ran as an op of its own, which it does in no fused block."""
    return bool(ops_called(function) & {"aten::relu", "aten::relu_"})


def assert_same(fused: nn.Module, native: nn.Module, *args: object, **kwargs: object) -> None:
    torch.testing.assert_close(fused(*args, **kwargs), native(*args, **kwargs))
    for (name, ours), (_, theirs) in zip(fused.named_buffers(), native.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")

"""Steps that are read by others or written into on the way: not fused, or only where that is right."""

import copy

import pytest
import torch
import torch.nn.functional as F

import tilewright
from tilewright import _fusion

from .fusion_forwards import Forwards, assert_same_steps, module_with

hazards = Forwards()


@hazards
def read_twice(self, x):
    y = self.norm(x)
    return F.relu(y) + y


@hazards
def sum_read_twice(self, x):
    y = self.norm(self.lin(x)) + x
    return F.relu(y) + y


@hazards
def writes_residual(self, x):
    y = self.norm(self.lin(x))
    r = x * 2
    r.mul_(3)
    return F.relu(y + r)


@hazards
def writes_source(self, x):
    s = x * 2
    y = self.norm(s)
    s.mul_(3)
    return F.relu(y + s)


@hazards
def writes_source_alias(self, x):
    s = x * 2
    y = self.norm(s.view(-1, 4))
    s += 1
    return F.relu(y + s)


@hazards
def inplace_residual(self, x):
    r = x * 2
    alias = r.view(-1)
    r += self.norm(x)
    return F.relu(r) + alias.view(-1, 4)


@hazards
def adds_to_argument(self, x):
    y = x * 1
    z = self.lin(y)
    y += self.drop(z)
    return self.end(y)


@hazards
def dropout_in_between(self, x):
    a = self.drop(self.lin(x))
    b = F.dropout(x, 0.5, self.training)
    return self.end(a + b)


@hazards
def sum_written_before_norm(self, x):
    s = x + self.drop(self.lin(x))
    t = s * 2
    s.add_(1)
    return self.end(s) + t


@hazards
def norm_of_an_alias(self, x):
    s = x + self.drop(self.lin(x))
    v = s.view(-1, 4)
    v.mul_(2)
    return self.end(s) + s


@hazards
def same_norm_in_between(self, x):
    a = self.norm(self.lin(x))
    b = self.norm(x)
    return F.relu(a + b)


@hazards
def statistics_in_between(self, x):
    a = self.norm(self.lin(x))
    m = self.norm.running_mean * 1
    return F.relu(a + x) + m


@hazards
def operand_twice(self, x):
    y = self.norm(x)
    return F.relu(y + y)


@hazards
def relu_written_after(self, x):
    y = self.norm(x)
    z = F.relu(y)
    y.add_(1)
    return z + y


FUSES = {
    "writes_residual": 1,
    "same_norm_in_between": 1,
    "sum_written_before_norm": 1,
    "norm_of_an_alias": 1,
}  # what may be fused all the same


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", hazards)
def test_hazards(name, training, p):
    native = tilewright.accelerate(module_with(hazards[name]).train(training), fuse=False)
    native.drop.p = p
    ours, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(5, 4)
    plan = _fusion.fuse(copy.deepcopy(native))
    assert len(plan.fusions) == FUSES.get(name, 0), plan.fusions
    assert_same_steps(ours, native, x)
    for (key, a), (_, b) in zip(ours.named_buffers(), native.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, key=key: f"{key}: {text}")

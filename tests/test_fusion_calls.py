"""Fused modules called in other ways than they were traced with: what their own forward gives, at every call."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tilewright
from tilewright._fusion import Fused
from tilewright.testing import ops_called

from .fusion_cases import BasicBlock, Decoder, GptBlock, encoder_layer
from .fusion_forwards import assert_same, fused_block, relu_ran


def test_arguments_of_other_kinds():
    native = Decoder(0.0, False).layer
    fused = tilewright.accelerate(copy.deepcopy(native))
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    mask, padding = torch.ones(5, 5, dtype=torch.bool).triu(1), torch.zeros(2, 4, dtype=torch.bool)
    padding[:, 3] = True
    calls = [
        ((x, memory), {}),
        ((x, memory, mask), {}),
        ((x,), {"memory": memory, "tgt_mask": mask, "tgt_is_causal": True}),
        ((x, memory), {"memory_key_padding_mask": padding}),
        ((x, memory, None, None), {}),
        ((x, x), {}),  # one tensor twice
        ((x[0], memory[0]), {}),
        ((nn.Parameter(x), memory), {}),
    ]
    for args, kwargs in calls * 2:
        assert_same(fused, native, *args, **kwargs)
    called = ops_called(lambda: fused(x, memory, mask))
    assert "tilewright::dropout_add_layer_norm_forward" in called
    assert "tilewright::layer_norm_forward" not in called
    with pytest.raises(TypeError, match="memory"):
        fused(x)
    with pytest.raises(TypeError):
        fused(x, memory, mask, nonsense=1)


class Scaled(nn.Module):
    """Decides by a number and by a name that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor, scale: float = 1.0, kind: str = "relu", again: bool = False) -> Tensor:
        y = self.norm(x)
        y = torch.relu(y) if kind == "relu" else torch.tanh(y)
        return y * scale if scale != 1.0 or again is True else y


def test_numbers_and_names_are_part_of_the_call():
    native = Scaled()
    fused, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(6, 4)
    assert isinstance(fused, Fused)
    for scale in (1.0, 2.0, 1, True, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0):  # more than the plans that are kept
        assert_same(fused, native, x, scale)
    assert_same(fused, native, x, kind="tanh")
    assert_same(fused, native, x, 2.0, again=True)
    assert not relu_ran(lambda: fused(x))


class Constants(nn.Module):
    """Constants of every kind on the way into the graph's code, and results of every kind out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.BatchNorm1d(4), nn.GRU(4, 4, batch_first=True)
        self.table = nn.Parameter(torch.linspace(-1, 1, 4))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        self.seen.add_(1)
        y = torch.relu(self.norm(x))
        y = y.masked_fill(y > 2.5, float("inf")).clamp(max=3.0)[..., :4][:, None]
        z, state = self.inner(y.to(torch.float32, memory_format=torch.contiguous_format))
        z = z[-1:, 0, :].sum(dim=-1, keepdim=True, dtype=torch.float64).to(x.device)
        z *= -1e-3
        rows, columns = x.shape
        return {"y": y.reshape(rows, columns) * self.table, "more": (z, state, self.seen * 1, torch.cat([x, x], 1))}


def test_constants_and_results_of_every_kind():
    native = Constants()
    fused, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(5, 4)
    assert isinstance(fused, Fused)
    for _ in range(3):
        assert_same(fused, native, x)
    assert not relu_ran(lambda: fused(x))


class Watching(Tensor):
    """A subclass that notes what is called on it."""

    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(getattr(function, "__name__", ""))
        return super().__torch_function__(function, types, args, kwargs or {})


def test_tensor_subclasses_see_every_step():
    fused, _, x = fused_block()
    fused(x.as_subclass(Watching))
    assert Watching.seen.count("batch_norm") == 3
    assert "add_" in Watching.seen or "__iadd__" in Watching.seen
    assert Watching.seen.count("relu_") + Watching.seen.count("relu") >= 2


RESIDUALS = {
    "broadcasts": (lambda: torch.randn(3, 1, 6, 6), None),
    "is larger": (lambda: torch.randn(2, 3, 4, 6, 6), None),
    "is a row": (lambda: torch.randn(6), None),
    "float64": (lambda: torch.randn(3, 4, 6, 6).double(), None),
    "float16": (lambda: torch.randn(3, 4, 6, 6).half(), None),
    "int": (lambda: torch.randint(0, 5, (3, 4, 6, 6)), None),
    "channels_last": (lambda: torch.randn(3, 4, 6, 6).contiguous(memory_format=torch.channels_last), None),
    "expanded": (lambda: torch.randn(4, 1, 1).expand(3, 4, 6, 6), None),
}


class Joined(nn.Module):
    """Sums in every order and both ways."""

    def __init__(self, order: str, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.drop = norm or nn.BatchNorm2d(4), nn.Dropout(0.0)
        self.end = nn.LayerNorm(6)
        self.order = order

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        if self.order == "first":
            return torch.relu(self.norm(x) + r)
        if self.order == "second":
            return torch.relu(r + self.norm(x))
        if self.order == "in place":
            y = self.norm(x)
            y += r
            return y.relu()
        if self.order == "dropout first":
            return self.end(self.drop(x) + r)
        return self.end(r + self.drop(x))


@pytest.mark.parametrize("order", ["first", "second", "in place", "dropout first", "dropout second"])
@pytest.mark.parametrize("kind", RESIDUALS)
def test_residuals_unlike_the_other_operand(kind, order):
    native = Joined(order)
    fused = tilewright.accelerate(copy.deepcopy(native))
    assert isinstance(fused, Fused)
    x, r, results = torch.randn(3, 4, 6, 6), RESIDUALS[kind][0](), []
    for model in (fused, native):
        a, b = x.clone().requires_grad_(), r.clone().requires_grad_(r.is_floating_point())
        if kind == "expanded":
            b = r.detach().requires_grad_()
        try:
            y = model(a, b)
            y.square().sum().backward()
            results.append((y.detach(), a.grad, b.grad, y.stride()))
        except RuntimeError as error:
            results.append(type(error))
    if isinstance(results[1], type):
        assert results[0] is results[1]
    else:
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["autocast", "bfloat16", "channels_last", "float64", "no_grad", "inference"])
@pytest.mark.parametrize("make", [lambda: BasicBlock(4, 6, 2), lambda: encoder_layer(0.0, True), lambda: GptBlock(0.0)])
def test_situations(make, kind):
    native = make()
    x = torch.randn((3, 4, 8, 8) if isinstance(native, BasicBlock) else (3, 5, 16))
    if kind in ("bfloat16", "float64"):
        native, x = native.to(getattr(torch, kind)), x.to(getattr(torch, kind))
    if kind == "channels_last" and x.dim() == 4:
        native, x = native.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    fused = tilewright.accelerate(copy.deepcopy(native))
    contexts = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
    }
    bound = {"autocast": 4e-2, "bfloat16": 4e-2}.get(kind, 1e-5)
    with contexts.get(kind, torch.enable_grad)():
        ours, theirs = fused(x), native(x)
    assert ours.stride() == theirs.stride()
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)
    if ours.requires_grad:
        for y in (ours, theirs):
            y.float().square().mean().backward()
        for (name, p), (_, q) in zip(fused.named_parameters(), native.named_parameters(), strict=True):
            largest = max(q.grad.abs().max().item(), 1e-2)
            torch.testing.assert_close(
                p.grad, q.grad, rtol=bound, atol=10 * bound * largest, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_checkpoint_gives_the_same_gradients():
    model, grads = tilewright.accelerate(GptBlock(0.3)), []
    x = torch.randn(3, 5, 16, requires_grad=True)
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        torch.manual_seed(4)
        run(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_what_torch_functional_relu_sees_is_natives():
    """A relu behind a sum with a scalar, or with alpha, is no residual block."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.norm(x) + 1.0)
            return F.relu(torch.add(self.norm(y), x, alpha=2))

    native = Shifted()
    ours, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(5, 4)
    assert not isinstance(ours, Fused)
    assert_same(ours, native, x)

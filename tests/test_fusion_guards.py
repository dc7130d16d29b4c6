"""Fused modules in situations other than the one they were traced in: what their own forward gives, at every call."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tilewright
from tilewright._fusion import Fused
from tilewright.testing import ops_called

from .fusion_cases import BasicBlock, Decoder, FunctionalBlock, GptBlock, encoder_layer

FUSED_OPS = ("dropout_add", "dropout_add_layer_norm")


def _block() -> tuple[nn.Module, nn.Module, Tensor]:
    """A residual block fused, the same one native, and a batch."""
    native = BasicBlock(4, 6, 2)
    fused = tilewright.accelerate(copy.deepcopy(native))
    assert isinstance(fused, Fused)
    return fused, native, torch.randn(3, 4, 8, 8)


def _relu_ran(function: object) -> bool:
    """Whether a ReLU ran as an op of its own, which it does in no fused block."""
    return bool(ops_called(function) & {"aten::relu", "aten::relu_"})


def _assert_same(fused: nn.Module, native: nn.Module, *args: object, **kwargs: object) -> None:
    torch.testing.assert_close(fused(*args, **kwargs), native(*args, **kwargs))
    for (name, ours), (_, theirs) in zip(fused.named_buffers(), native.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_a_fused_block_runs_no_relu():
    fused, native, x = _block()
    assert not _relu_ran(lambda: fused(x))
    assert _relu_ran(lambda: native(x))
    _assert_same(fused, native, x)


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
    _assert_same(fused, native, x)
    fused(x).sum().backward()
    assert seen == ["ran"] * (1 if "backward" in kind else 2)
    assert _relu_ran(lambda: fused(x)) == (layer > 0)
    handle.remove()
    assert not _relu_ran(lambda: fused(x))


def test_hooks_of_a_shared_relu_run_for_each_of_its_calls():
    fused, native, x = _block()
    seen = []
    for model in (fused, native):
        model.relu.register_forward_hook(lambda m, args, y: seen.append(1) or y * 2)
    _assert_same(fused, native, x)
    assert len(seen) == 4


def test_global_hooks_run():
    fused, _, x = _block()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, y: seen.append(type(module).__name__))
    fused(x)
    handle.remove()
    assert seen.count("ReLU") == 2
    assert seen.count("BatchNorm2d") == 3


@pytest.mark.parametrize("freeze", [["bn1"], ["bn2"], ["bn1", "bn2", "downsample"]])
def test_frozen_statistics_in_a_training_block(freeze):
    fused, native, x = _block()
    for model in (fused, native):
        for name in freeze:
            getattr(model, name).eval()
    _assert_same(fused, native, x)
    assert not _relu_ran(lambda: fused(x))


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
        _assert_same(fused, native, x)
    for model in (fused, native):
        CHANGES[change](model)
    _assert_same(fused, native, x)
    _assert_same(fused.eval(), native.eval(), x)


def test_a_downsample_that_comes_and_goes():
    native = BasicBlock(4, 4)
    fused, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(3, 4, 6, 6)
    layer = nn.Conv2d(4, 4, 1)
    for downsample in (None, layer, None, nn.Tanh(), layer):
        for model in (fused, native):
            model.downsample = downsample
        _assert_same(fused, native, x)
        assert not _relu_ran(lambda: fused(x))
        native(x)


def test_children_of_containers_replaced():
    native = FunctionalBlock()
    fused, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(2, 4, 5, 5)
    _assert_same(fused, native, x)
    for model in (fused, native):
        model.norms["b"] = nn.Identity()
        model.convs[3] = nn.Identity()
        model.act = torch.tanh
    _assert_same(fused, native, x)


def test_a_sequential_that_grows_shrinks_and_is_sliced():
    native = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    fused, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(2, 3, 4, 4)
    for change in (lambda m: m.append(nn.Tanh()), lambda m: m.pop(2), lambda m: m.insert(1, nn.Conv2d(4, 4, 1))):
        torch.manual_seed(1)
        change(native)
        torch.manual_seed(1)
        change(fused)
        _assert_same(fused, native, x)
    _assert_same(fused[:2], native[:2], x)


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
        _assert_same(fused, native, *args, **kwargs)
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
        _assert_same(fused, native, x, scale)
    _assert_same(fused, native, x, kind="tanh")
    _assert_same(fused, native, x, 2.0, again=True)
    assert not _relu_ran(lambda: fused(x))


class Watching(Tensor):
    """A subclass that notes what is called on it."""

    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(getattr(function, "__name__", ""))
        return super().__torch_function__(function, types, args, kwargs or {})


def test_tensor_subclasses_see_every_step():
    fused, _, x = _block()
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
    _assert_same(ours, native, x)

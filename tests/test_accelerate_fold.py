"""accelerate(fold=True): the numbers, what it says it folds, and that nothing of the model changes."""

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

import tilewright
from tilewright._fusion import Fused
from tilewright.testing import assert_as_accurate, max_error

from .fold_cases import NETS, folding, norms_ran, pair, same, settled
from .fusion_cases import BasicBlock, ResNet
from .models import COPIES

LAYERS = {
    "plain": {},
    "no bias": {"bias": False},
    "stride": {"stride": 2, "padding": 1},
    "dilation": {"dilation": (2, 1), "padding": (0, 1)},
    "same": {"padding": "same"},
    "same, one more on a side": {"padding": "same", "kernel_size": (2, 4)},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular, same": {"padding": "same", "padding_mode": "circular"},
    "groups": {"groups": 4},
    "depthwise": {"groups": 8, "out_channels": 8, "padding": 1},
    "two filters a channel": {"groups": 8, "bias": False},
    "1x1": {"kernel_size": 1},
    "winograd": {"in_channels": 32, "out_channels": 32, "padding": 1},
}


def _layers(norm: dict[str, object] | None = None, **options: object) -> nn.Module:
    given = {"in_channels": 8, "out_channels": 16, "kernel_size": 3, **options}
    return settled(nn.Sequential(nn.Conv2d(**given), nn.BatchNorm2d(given["out_channels"], **(norm or {})), nn.ReLU()))


def _accurate(native: nn.Module, x: Tensor) -> None:
    ours, wide = folding(native), copy.deepcopy(native).double()
    with torch.no_grad():
        y, expected = ours(x), native(x)
        assert_as_accurate(y, expected, wide(x.double()))
    assert y.stride() == expected.stride()
    assert not norms_ran(ours, x)


@pytest.mark.parametrize("name", NETS)
def test_whole_nets(isa, name):
    _accurate(settled(NETS[name][0]()), torch.randn(2, 3, 16, 18))


@pytest.mark.parametrize("name", ["basic", "mobile"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_whole_nets_of_other_types_in_channels_last(name, dtype):
    native = settled(NETS[name][0]()).to(dtype, memory_format=torch.channels_last)
    _accurate(native, torch.randn(2, 3, 16, 18, dtype=dtype).contiguous(memory_format=torch.channels_last))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
def test_every_convolution(isa, name):
    native = _layers(**LAYERS[name])
    _accurate(native, torch.randn(2, native[0].in_channels, 9, 11))


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels_last"])
@pytest.mark.parametrize("dtype", tilewright.testing.DTYPES, ids=str)
@pytest.mark.parametrize("name", ["plain", "depthwise", "groups", "reflect"])
def test_every_type_and_format(name, dtype, last):
    memory_format = torch.channels_last if last else torch.contiguous_format
    native = _layers(**LAYERS[name]).to(dtype, memory_format=memory_format)
    _accurate(native, torch.randn(2, 8, 9, 11, dtype=dtype).contiguous(memory_format=memory_format))


@pytest.mark.parametrize("norm", [{"affine": False}, {"eps": 0.3}, {"momentum": None}], ids=str)
def test_every_norm(norm):
    _accurate(_layers(norm), torch.randn(2, 8, 9, 11))
    _accurate(_layers({**norm, "dtype": torch.float64}, dtype=torch.float64), torch.randn(2, 8, 9, 11).double())


@pytest.mark.parametrize("dtype", tilewright.testing.DTYPES, ids=str)
def test_products_that_cancel(dtype):
    """The bar is twice native's error and half a unit of each product: folded weights are rounded once more than
    native's, which stays where products cancel."""
    native = _layers(bias=False)
    with torch.no_grad():
        native[0].weight -= native[0].weight.mean((1, 2, 3), keepdim=True)
        native.to(dtype)
        x = (20 + torch.rand(2, 8, 9, 11)).to(dtype)
        wide, ours = copy.deepcopy(native).double(), folding(native)
        reference = wide(x.double())
        products = copy.deepcopy(wide[0])
        scale = wide[1].weight / (wide[1].running_var + wide[1].eps).sqrt()
        products.weight.copy_((products.weight * scale[:, None, None, None]).abs())
        bound = 2 * max_error(native(x), reference) + torch.finfo(dtype).eps / 2 * products(x.double().abs())
        assert ((ours(x).double() - reference).abs() <= bound).all()
    assert not norms_ran(ours, x)


class Sum(nn.Module):
    """Every order of a sum behind a norm."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.conv, self.empty, self.norm = nn.Conv2d(4, 6, 3, padding=1), nn.Identity(), nn.BatchNorm2d(6)
        self.order = order

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.norm(self.empty(self.conv(x)))
        if self.order == "first":
            return torch.relu(y + r)
        if self.order == "second":
            return torch.relu(r + y)
        y += r
        return y.relu()


RESIDUALS = {
    "fits": torch.ones(2, 6, 5, 7),
    "other format": torch.ones(2, 6, 5, 7).contiguous(memory_format=torch.channels_last),
    "broadcasts": torch.ones(2, 1, 5, 7),
    "is larger": torch.ones(3, 2, 6, 5, 7),
    "float64": torch.ones(2, 6, 5, 7, dtype=torch.float64),
    "does not fit": torch.ones(2, 6, 4, 7),
}


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels_last"])
@pytest.mark.parametrize("order", ["first", "second", "in place"])
@pytest.mark.parametrize("kind", RESIDUALS)
def test_residual_sums(kind, order, last):
    native = settled(Sum(order))
    x, r, results = torch.randn(2, 4, 5, 7), torch.randn(RESIDUALS[kind].shape) * RESIDUALS[kind], []
    if last:
        native, x = native.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    ours = folding(native)
    for model in (ours, native):
        try:
            with torch.no_grad():
                results.append(model(x, r))
        except RuntimeError as error:
            results.append(type(error))
    if isinstance(results[1], type):
        assert results[0] is results[1]
    else:
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
        assert results[0].stride() == results[1].stride()
        assert not norms_ran(ours, x, r)


@pytest.mark.parametrize("name", NETS)
def test_what_it_says(name, caplog):
    make, count = NETS[name]
    with caplog.at_level(logging.INFO, logger="tilewright"):
        model = tilewright.accelerate(make(), fold=True)
    assert f"folds {count} of {count} BatchNorm2d" in caplog.text
    rows = [row for row in tilewright.summary(model) if row.type == "BatchNorm2d"]
    assert len(rows) == count
    assert all(row.fused.startswith("Conv2d + BatchNorm") for row in rows)


def test_a_forward_without_a_graph(caplog):
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return y if y.sum() > 0 else -y

    native = settled(Deciding())
    with caplog.at_level(logging.DEBUG, logger="tilewright"):
        ours = folding(native)
    assert "folds 0 of 1 BatchNorm2d" in caplog.text
    assert "decides by a tensor's value" in caplog.text
    same(ours, native, torch.randn(2, 4, 5, 5), folds=False)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", NETS)
def test_nothing_of_the_model_changes(name):
    model, x = settled(NETS[name][0]()), torch.randn(2, 3, 16, 16)
    state, text = _state(model), repr(model)
    types, attributes = [type(m) for m in model.modules()], [set(vars(m)) for m in model.modules()]
    objects = [id(o) for o in (*model.modules(), *model.parameters(), *model.buffers())]
    versions = [t._version for t in model.state_dict().values()]
    tilewright.accelerate(model, fold=True)
    for _ in range(2):
        assert not norms_ran(model, x)
    for m in (model, tilewright.restore(model)):  # while it is folded, and afterwards
        assert list(m.state_dict()) == list(state)
        assert all(torch.equal(value, state[key]) for key, value in m.state_dict().items())
        assert [t._version for t in m.state_dict().values()] == versions
        assert [id(o) for o in (*m.modules(), *m.parameters(), *m.buffers())] == objects
        assert repr(m) == text
    assert [type(m) for m in model.modules()] == types
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert norms_ran(model, x)


def test_fold_of_what_is_fused_already_and_again():
    native, x = settled(ResNet(BasicBlock)), torch.randn(2, 3, 8, 8)
    ours = tilewright.accelerate(copy.deepcopy(native))
    same(ours, native, x, folds=False)
    for again in ({"fold": True}, {"fold": True}, {}, {"fuse": False}):  # restore takes it off, these do not
        tilewright.accelerate(ours, **again)
        same(ours, native, x)
    same(tilewright.restore(ours), native, x, folds=False)
    assert not any(isinstance(m, Fused) for m in ours.modules())
    tilewright.accelerate(ours)
    same(ours, native, x, folds=False)
    with pytest.raises(ValueError, match="fuse=False"):
        tilewright.accelerate(ours, fuse=False, fold=True)


def test_only_and_skip_choose_what_is_folded():
    native, x = nn.Sequential(pair(padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1), pair(padding=1)), torch.randn(2, 4, 5, 5)
    for chosen in ({"only": "0"}, {"skip": "3"}):
        ours = tilewright.accelerate(copy.deepcopy(native.eval()), fold=True, **chosen)
        same(ours, native, x, folds=False)
        same(ours[0], native[0], x)
        same(ours[3], native[3], x, folds=False)


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("how", COPIES)
def test_copies_fold_and_are_their_own(how, called):
    native, x = settled(ResNet(BasicBlock)), torch.randn(2, 3, 8, 8)
    ours = folding(native)
    if called:
        same(ours, native, x)
    copied = COPIES[how](ours)
    assert [type(m) for m in copied.modules()] == [type(m) for m in ours.modules()]
    for norm in (m for m in copied.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.add_(1)
    same(ours, native, x)
    assert not norms_ran(copied, x)
    same(tilewright.restore(copy.deepcopy(copied)), copied, x, folds=False)
    with torch.no_grad():
        assert not torch.allclose(copied(x), ours(x))


def test_compilers_and_tracers_see_the_layers():
    native, x = settled(ResNet(BasicBlock)), torch.randn(2, 3, 8, 8)
    ours = folding(native)
    same(ours, native, x)
    with torch.no_grad():
        expected = native(x)
        for strict in (False, True):
            torch.testing.assert_close(torch.export.export(ours, (x,), strict=strict).module()(x), expected)
        torch.testing.assert_close(torch.jit.trace(ours, (x,))(x), expected)
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
        ours.conv1.weight.mul_(2), native.conv1.weight.mul_(2)
        torch.testing.assert_close(compiled(x), native(x))
    kinds = [(n.op, str(n.target)) for n in torch.fx.symbolic_trace(ours).graph.nodes]
    assert kinds == [(n.op, str(n.target)) for n in torch.fx.symbolic_trace(native).graph.nodes]
    same(ours, native, x)
    torch.testing.assert_close(torch.jit.script(ours)(x), native(x))

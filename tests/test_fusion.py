"""accelerate's fusions on whole models: what is fused, and the same numbers, state and copies."""

import copy
import io
import logging
import pickle
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import tilewright
from tilewright._fusion import Fused
from tilewright.testing import max_error, ops_called

from .fusion_cases import ADD, BN, BN6, CASES, NORM, SUM, SUM6, BasicBlock, GptBlock, ResNet, encoder_layer

OPS = {
    BN: "tilewright::batch_norm_forward",
    SUM: "tilewright::batch_norm_forward",
    BN6: "tilewright::batch_norm_forward",
    SUM6: "tilewright::batch_norm_forward",
    ADD: "tilewright::dropout_add_forward",
    NORM: "tilewright::dropout_add_layer_norm_forward",
}


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _relative_error(actual: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    return max(
        max_error(value, reference[key]) / max(reference[key].abs().max().item(), 1e-6)
        for key, value in actual.items()
        if value.is_floating_point()
    )


def _results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers of one step."""
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "dx": x.grad, **gradients, **dict(model.named_buffers())}


def _fused_and_not(name: str, p: float) -> tuple[nn.Module, nn.Module, Tensor]:
    make, batch, _ = CASES[name]
    native = make(p)
    ours = tilewright.accelerate(copy.deepcopy(native))
    return ours, tilewright.accelerate(native, fuse=False), batch()


@pytest.mark.parametrize("name", CASES)
def test_what_is_fused(name, caplog):
    make, batch, expected = CASES[name]
    model = make(0.25)
    with caplog.at_level(logging.INFO, logger="tilewright"):
        tilewright.accelerate(model)
    said = ", ".join(f"{n} {kind}" for kind, n in sorted(expected.items())) or "nothing"
    assert f"fused {said}" in caplog.text
    assert any(isinstance(m, Fused) for m in model.modules()) == bool(expected)
    called = ops_called(lambda: model(batch()))
    assert {OPS[kind] for kind in expected} <= called
    if set(expected) & {BN, SUM, BN6, SUM6}:
        assert not called & {"aten::relu", "aten::relu_", "aten::clamp_min", "aten::clamp_min_"}
        assert not called & {"aten::relu6", "aten::hardtanh", "aten::hardtanh_"}
    if set(expected) & {ADD, NORM} and "decoder" not in name:
        assert "tilewright::dropout_add_forward" in called or ADD not in expected


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_gradients_and_statistics(isa, name, training):
    make, batch, _ = CASES[name]
    native, x = make(0.0).train(training), batch()
    wide = copy.deepcopy(native).double()
    ours = tilewright.accelerate(copy.deepcopy(native))
    results = [_results(model, t) for model, t in ((ours, x), (native, x), (wide, x.double()))]
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert value.dtype == results[1][key].dtype
        assert value.stride() == results[1][key].stride(), key
        assert value.is_floating_point() or torch.equal(value, results[1][key])
    errors = [_relative_error(result, results[2]) for result in results[:2]]
    assert errors[0] <= max(2 * errors[1], 16 * 2**-24), errors


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["post-norm", "pre-norm", "decoder", "pre-norm decoder", "gpt"])
def test_the_same_masks_as_without_fusion(name, p):
    *models, x = _fused_and_not(name, p)
    results = []
    for model in models:
        torch.manual_seed(5)
        results.append(_results(model, x))
        results[-1]["next"] = torch.rand(3)  # the generator stands where it stood
    assert torch.equal(results[0]["next"], results[1]["next"])
    for key, value in results[0].items():
        torch.testing.assert_close(
            value, results[1][key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", ["basic", "bottleneck", "post-norm", "pre-norm", "gpt"])
def test_twenty_steps_of_adam(name):
    make, batch, _ = CASES[name]
    errors = torch.zeros(2)
    for seed in range(4):
        torch.manual_seed(seed)
        native, x = make(0.0), batch()
        wide, losses = copy.deepcopy(native).double(), []
        for model, t in ((tilewright.accelerate(copy.deepcopy(native)), x), (native, x), (wide, x.double())):
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            trace = []
            for _ in range(20):
                optimizer.zero_grad()
                loss = (model(t) - 0.5).square().mean()
                loss.backward()
                optimizer.step()
                trace.append(loss.detach())
            assert trace[-1] < trace[0]
            losses.append(torch.stack(trace))
        errors += torch.tensor([max_error(t, losses[2]) for t in losses[:2]]) / losses[2].abs().max()
    assert errors[0] <= 2 * errors[1], errors


@pytest.mark.parametrize("name", CASES)
def test_restore(name):
    model = CASES[name][0](0.1)
    types, text = [type(m) for m in model.modules()], repr(model)
    names, attributes = list(model.state_dict()), [set(vars(m)) for m in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    tilewright.accelerate(model)
    assert list(model.state_dict()) == names
    assert repr(model) == text
    model.eval()(CASES[name][1]())
    tilewright.accelerate(model)
    tilewright.restore(model)
    assert [type(m) for m in model.modules()] == types
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def _through_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": _through_file,
}


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["basic", "post-norm", "pre-norm decoder"])
def test_copies_are_fused_and_their_own(name, how, called):
    make, batch, expected = CASES[name]
    model, x = tilewright.accelerate(make(0.1)), batch()
    if called:
        model(x)
    copied = COPIES[how](model)
    assert [type(m) for m in copied.modules()] == [type(m) for m in model.modules()]
    torch.testing.assert_close(copied.eval()(x), model.eval()(x))
    assert {OPS[kind] for kind in expected} <= ops_called(lambda: copied.train()(x))
    if how != "copy":  # which shares the children
        for p in copied.parameters():
            p.data.zero_()
        assert not torch.equal(copied.eval()(x), model.eval()(x))
    assert not any(isinstance(m, Fused) for m in tilewright.restore(copied).modules())


def test_fuse_false_and_again():
    model = tilewright.accelerate(ResNet(BasicBlock), fuse=False)
    assert not any(isinstance(m, Fused) for m in model.modules())
    assert not any(row.fused for row in tilewright.summary(model))
    tilewright.accelerate(model)
    fused = [type(m) for m in model.modules()]
    assert any(issubclass(kind, Fused) for kind in fused)
    tilewright.accelerate(model)
    tilewright.accelerate(model, fuse=False)  # restore takes fusions off, this does not
    assert [type(m) for m in model.modules()] == fused


def test_only_and_skip_choose_what_is_fused():
    def fused(**chosen: object) -> set[str]:
        model = tilewright.accelerate(ResNet(BasicBlock), **chosen)
        return {name for name, m in model.named_modules() if isinstance(m, Fused)}

    assert fused() == {"", "layer1.0", "layer1.1", "layer2.0"}
    assert fused(only="layer1") == {"layer1.0", "layer1.1"}
    assert fused(skip="layer1.0") == {"", "layer1.1", "layer2.0"}
    assert fused(only=nn.BatchNorm2d) == set()
    assert fused(skip=nn.BatchNorm2d) == set()


def test_types_stay_visible():
    model = tilewright.accelerate(nn.ModuleList([BasicBlock(4, 4), encoder_layer(0.1, True), nn.Sequential()]))
    assert isinstance(model[0], BasicBlock)
    assert isinstance(model[1], nn.TransformerEncoderLayer)
    assert isinstance(model[1], tilewright.nn.TransformerEncoderLayer)
    assert (type(model[0]).__name__, type(model[0]).__module__) == ("BasicBlock", BasicBlock.__module__)
    assert "x" in str(__import__("inspect").signature(model[0].forward))


def test_summary():
    model = tilewright.accelerate(nn.Sequential(BasicBlock(4, 4), GptBlock(0.1)))
    rows = {row.name: row for row in tilewright.summary(model)}
    assert rows["0.bn1"].fused == BN
    assert rows["0.bn2"].fused == SUM
    assert rows["0.relu"].accelerated
    assert rows["1.drop"].fused == NORM
    assert rows["1.ln1"].fused == ""
    counts = Counter(row.fused for row in rows.values())
    assert counts == {"": len(rows) - 6, BN: 2, SUM: 1, NORM: 3}
    assert "BatchNorm + add + ReLU" in str(tilewright.summary(model)).replace("\n", " ")
    assert max(map(len, str(tilewright.summary(model)).splitlines())) <= 100
    assert not any(row.fused for row in tilewright.summary(tilewright.restore(model)))

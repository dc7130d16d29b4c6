"""accelerate and restore on whole models: the same numbers and state; what is replaced, what is left and why."""

import copy
import io
import logging
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, prune

import tilewright
import tilewright.nn as TN
from tilewright.testing import assert_as_accurate, max_error, ops_called

from .models import MODELS, encoder, resnet

LAYERS = {
    "Conv2d": nn.Conv2d,
    "Linear": nn.Linear,
    "LayerNorm": nn.LayerNorm,
    "BatchNorm1d": nn.BatchNorm1d,
    "BatchNorm2d": nn.BatchNorm2d,
    "BatchNorm3d": nn.BatchNorm3d,
    "Dropout": nn.Dropout,
    "MultiheadAttention": nn.MultiheadAttention,
    "TransformerEncoderLayer": nn.TransformerEncoderLayer,
}


class PlainSubclass(nn.Linear):
    """Overrides nothing that a replacement brings."""

    def __init__(self, size: int, note: str) -> None:
        super().__init__(size, size)
        self.note = note

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, note={self.note}"


class DoublingSubclass(nn.Linear):
    """Overrides forward: must never be replaced."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class StandardizedConv(nn.Conv2d):
    """Overrides what Conv2d's forward calls: must never be replaced either."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


def _three(name: str) -> tuple[nn.Module, nn.Module, nn.Module, Tensor]:
    """The accelerated model, the native one and a float64 copy, from the same weights, and one batch."""
    make, batch = MODELS[name]
    native = make(0.0)
    return tilewright.accelerate(copy.deepcopy(native)), native, copy.deepcopy(native).double(), batch()


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _relative_error(actual: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Largest error of any tensor relative to its largest value: one measure for a model, since which of its many small
    tensors carries the largest rounding error is chance."""
    return max(
        max_error(value, reference[key]) / max(reference[key].abs().max().item(), 1e-6)
        for key, value in actual.items()
        if value.is_floating_point()
    )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_of_whole_models(isa, name, training):
    *models, x = _three(name)
    direction, results = torch.randn(copy.deepcopy(models[1])(x).shape), []
    for model, batch in zip(models, (x, x, _wide(x)), strict=True):
        y = model.train(training)(batch)
        y.backward(direction.to(y.dtype))
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append({"y": y.detach(), **gradients, **dict(model.named_buffers())})
    ours, native, reference = results
    assert ours.keys() == native.keys()
    assert all(torch.equal(value, native[key]) for key, value in ours.items() if not value.is_floating_point())
    errors = [_relative_error(result, reference) for result in (ours, native)]
    assert errors[0] <= max(2 * errors[1], 16 * 2**-24), errors


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("name", MODELS)
def test_twenty_training_steps(name, optimizer):
    """Losses along the way, not final weights: Adam divides by tiny second moments, which magnifies last bits."""
    *models, x = _three(name)
    losses = []
    for model, batch in zip(models, (x, x, _wide(x)), strict=True):
        steps, stepper = [], optimizer(model.parameters(), lr=1e-3)
        for _ in range(20):
            stepper.zero_grad()
            loss = (model(batch) - 0.5).square().mean()
            loss.backward()
            stepper.step()
            steps.append(loss.detach())
        losses.append(torch.stack(steps))
    assert losses[1][-1] < losses[1][0]
    # Twenty steps magnify rounding differences by chance in either direction, so this bar is twice the ops' own.
    assert_as_accurate(*losses, what="losses", factor=4)


@pytest.mark.parametrize("name", MODELS)
def test_restore_gives_exact_types_back(name):
    model = MODELS[name][0](0.1)
    types = [type(m) for m in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    text, objects = repr(model), [id(m) for m in model.modules()]
    tilewright.accelerate(model)
    assert any(type(m) is not kind for m, kind in zip(model.modules(), types, strict=True))
    assert list(model.state_dict()) == list(state)
    assert repr(model) == text
    assert tilewright.restore(model) is model
    assert [type(m) for m in model.modules()] == types
    assert [id(m) for m in model.modules()] == objects
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_every_supported_type_is_replaced_and_computed_by_our_ops():
    for name, kind in LAYERS.items():
        layer = kind(*{"Conv2d": (4, 4, 3), "Dropout": (0.5,), "LayerNorm": (4,)}.get(name, (4, 2)))
        assert tilewright.accelerate(layer) is layer  # the root itself
        assert type(layer) is getattr(TN, name)
        assert isinstance(layer, kind)
    called = ops_called(lambda: tilewright.accelerate(resnet(0.5))(torch.randn(2, 3, 8, 8)))
    assert {f"tilewright::{op}" for op in ("conv2d", "batch_norm", "linear", "dropout")} <= called
    called = ops_called(lambda: tilewright.accelerate(encoder(0.5))(torch.randn(2, 5, 16)))
    ops = ("linear", "layer_norm", "scaled_dot_product_attention", "dropout")
    assert {f"tilewright::{op}" for op in ops} <= called


def test_all_state_of_a_layer_stays():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).to(torch.bfloat16).eval()
    model[2].weight = model[0].weight  # tied
    model[0].remark = {"any": "attribute"}
    model[0].weight.requires_grad_(False)
    model.register_module("again", model[2])  # one module in two places
    before = {name: (id(p), p.dtype, p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)}
    buffers = {name: id(b) for name, b in model.named_buffers()}
    tilewright.accelerate(model)
    assert before == {n: (id(p), p.dtype, p.requires_grad) for n, p in model.named_parameters(remove_duplicate=False)}
    assert buffers == {name: id(b) for name, b in model.named_buffers()}
    assert model[0].weight is model[2].weight
    assert model.again is model[2]
    assert model[0].remark == {"any": "attribute"}
    assert not any(m.training for m in model.modules())
    assert len(tilewright.summary(model)) == 3


def test_hooks_stay_and_run():
    layer, seen = nn.Linear(4, 4), []
    layer.register_forward_pre_hook(lambda *_: seen.append("pre"))
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer.register_state_dict_post_hook(lambda *_: seen.append("state"))
    tilewright.accelerate(layer)(torch.randn(2, 4, requires_grad=True)).sum().backward()
    layer.state_dict()
    assert seen == ["pre", "forward", "backward", "state"]


def _through_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": _through_file}


@pytest.mark.parametrize("how", COPIES)
def test_copies(how):
    model = nn.Sequential(resnet(0.0), PlainSubclass(5, "kept"))
    tilewright.accelerate(tilewright.accelerate(model), only=PlainSubclass).eval()
    copied = COPIES[how](model)
    assert [type(m) for m in copied.modules()] == [type(m) for m in model.modules()]
    assert copied[1].note == "kept"
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(copied(x), model(x))
    assert type(tilewright.restore(copied)[1]) is PlainSubclass


def test_checkpoints_fit_both_ways():
    native, x = resnet(0.0).eval(), torch.randn(2, 3, 8, 8)
    ours = tilewright.accelerate(resnet(0.0)).eval()
    ours.load_state_dict(native.state_dict())
    torch.testing.assert_close(ours(x), native(x))
    fresh = resnet(0.0).eval()
    fresh.load_state_dict(ours.state_dict())
    assert torch.equal(fresh(x), native(x))


def test_bfloat16_and_channels_last_models():
    native = resnet(0.0).to(torch.bfloat16, memory_format=torch.channels_last)
    ours, wide = tilewright.accelerate(copy.deepcopy(native)), copy.deepcopy(native).double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    assert ours[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert ours[:5](x).is_contiguous(memory_format=torch.channels_last)
    for model in (ours, native, wide):
        model.load_state_dict(native.state_dict())
    assert_as_accurate(ours(x), native(x), wide(x.double()))


def test_subclasses():
    model = nn.Sequential(PlainSubclass(4, "a"), DoublingSubclass(4, 4), nn.Linear(4, 4))
    tilewright.accelerate(model)
    assert [type(m) for m in model] == [PlainSubclass, DoublingSubclass, TN.Linear]
    x, expected = torch.randn(2, 4), None
    expected = tilewright.restore(model)(x)
    tilewright.accelerate(model, only=[PlainSubclass])
    assert isinstance(model[0], TN.Linear)
    assert isinstance(model[0], PlainSubclass)
    assert type(model[2]) is nn.Linear
    assert "note=a" in repr(model[0])
    torch.testing.assert_close(model(x), expected)
    for overriding in (DoublingSubclass, StandardizedConv):
        with pytest.raises(ValueError, match="overrides"):
            tilewright.accelerate(model, only=[nn.Linear, overriding])
    assert type(model[2]) is nn.Linear  # nothing was changed by the refused calls


def _tree() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), encoder(0.0))


SELECTIONS = {
    "nothing said": ({}, {"0", "1.0", "1.1", "2.norm"}),
    "only type": ({"only": nn.LayerNorm}, {"1.1", "2.norm"}),
    "only name": ({"only": "1"}, {"1.0", "1.1"}),
    "only mixed": ({"only": ["0", nn.LayerNorm]}, {"0", "1.1", "2.norm"}),
    "only pattern": ({"only": ("1.*",)}, {"1.0", "1.1"}),
    "only container type": ({"only": nn.TransformerEncoder}, {"2.norm"}),
    "skip type": ({"skip": [nn.Linear]}, {"1.1", "2.norm"}),
    "skip name": ({"skip": ["1.0", "2"]}, {"0", "1.1"}),
    "skip wins": ({"only": "1", "skip": nn.LayerNorm}, {"1.0"}),
    "skip container": ({"skip": nn.TransformerEncoder}, {"0", "1.0", "1.1"}),
}


@pytest.mark.parametrize("kind", SELECTIONS)
def test_only_and_skip(kind):
    arguments, expected = SELECTIONS[kind]
    rows = tilewright.summary(tilewright.accelerate(_tree(), **arguments)).replaced
    assert {row.name for row in rows if ".layers." not in row.name} == expected
    inside = any(".layers." in row.name for row in rows)
    assert inside == ("2.norm" in expected)


def test_a_module_in_two_places_is_skipped_by_either_name():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared})
    tilewright.accelerate(model, skip="b")
    assert type(shared) is nn.Linear
    tilewright.accelerate(model, only="b")
    assert type(shared) is TN.Linear


BAD_CALLS = {
    "no module": (TypeError, lambda: tilewright.accelerate(torch.relu)),
    "no module to restore": (TypeError, lambda: tilewright.restore("model")),
    "no module to sum up": (TypeError, lambda: tilewright.summary(None)),
    "only a module": (TypeError, lambda: tilewright.accelerate(_tree(), only=nn.Linear(2, 2))),
    "only a number": (TypeError, lambda: tilewright.accelerate(_tree(), only=[nn.Linear, 3])),
    "skip another type": (TypeError, lambda: tilewright.accelerate(_tree(), skip=int)),
    "only an unknown name": (ValueError, lambda: tilewright.accelerate(_tree(), only="norm")),
    "skip an unknown name": (ValueError, lambda: tilewright.accelerate(_tree(), skip=["0", "head"])),
    "only an unsupported type": (ValueError, lambda: tilewright.accelerate(_tree(), only=nn.GRU)),
    "positional": (TypeError, lambda: tilewright.accelerate(_tree(), nn.Linear)),
}


@pytest.mark.parametrize("kind", BAD_CALLS)
def test_wrong_arguments(kind):
    error, call = BAD_CALLS[kind]
    with pytest.raises(error):
        call()


class _Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.jit.script(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def _patched() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x + 1
    return layer


LEFT = {
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "parametrized Linear"),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), "parametrized Linear"),
    "lazy": (lambda: nn.LazyLinear(4), "lazy"),
    "script": (_Scripted, "TorchScript"),
    "patched forward": (_patched, "forward was replaced"),
    "gru cell": (lambda: nn.GRUCell(4, 4), "no GRUCell"),
    "overriding subclass": (lambda: DoublingSubclass(4, 4), "overrides forward"),
    "plain subclass": (lambda: PlainSubclass(4, ""), "name its type in only="),
    "quantizable": (
        lambda: torch.ao.nn.qat.Linear(4, 4, qconfig=torch.ao.quantization.default_qat_qconfig),
        "overrides",
    ),
}


@pytest.mark.filterwarnings("ignore")  # deprecations of torch.jit and torch.ao
@pytest.mark.parametrize("kind", LEFT)
def test_left_alone_with_a_reason(kind):
    make, reason = LEFT[kind]
    model = make()
    types, x = [type(m) for m in model.modules()], torch.randn(2, 4)
    assert any(reason in row.reason for row in tilewright.summary(tilewright.accelerate(model)).left)
    assert [type(m) for m in model.modules()] == types
    assert model(x).shape == (2, 4)


@pytest.mark.filterwarnings("ignore")  # the older weight_norm is deprecated
@pytest.mark.parametrize(
    "wrap", [nn.utils.weight_norm, nn.utils.spectral_norm, lambda m: prune.l1_unstructured(m, "weight", 0.5)]
)
def test_wrappers_made_of_hooks_are_replaced(wrap):
    native = wrap(nn.Linear(6, 5)).eval()
    ours = tilewright.accelerate(
        copy.deepcopy(native) if wrap is nn.utils.spectral_norm else wrap(nn.Linear(6, 5)).eval()
    )
    ours.load_state_dict(native.state_dict())
    x = torch.randn(3, 6)
    assert type(ours) is TN.Linear
    torch.testing.assert_close(ours(x), native(x))


def test_parametrized_after_acceleration():
    layer = parametrizations.weight_norm(tilewright.accelerate(nn.Linear(6, 5)))
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert tilewright.summary(layer).replaced
    assert isinstance(tilewright.restore(layer), TN.Linear)  # its class is made at run time: it stays, with a warning


def test_lazy_layers_once_they_are_made():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(2, 3, 6, 6))
    tilewright.accelerate(model)
    assert [type(m) for m in model] == [TN.Conv2d, TN.BatchNorm2d, nn.Flatten, TN.Linear]


def test_summary_and_log(caplog):
    model = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4), nn.Linear(4, 4))
    with caplog.at_level(logging.DEBUG, logger="tilewright"):
        tilewright.accelerate(model, skip="2")
    assert "accelerated 1 Linear" in caplog.text
    assert "tilewright has no GRU" in caplog.text
    summary = tilewright.summary(model)
    assert [(row.name, row.type, row.accelerated) for row in summary] == [
        ("0", "Linear", True),
        ("1", "GRU", False),
        ("2", "Linear", False),
    ]
    assert "not chosen" in summary.rows[2].reason
    assert summary.to_dicts()[0] == {"name": "0", "type": "Linear", "accelerated": True, "reason": ""}
    lines = str(summary).splitlines()
    assert lines[0].startswith("1 of 3 layers on tilewright")
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", MODELS)
def test_compile(name):
    ours, _, _, x = _three(name)
    compiled = torch.compile(ours, backend="aot_eager")
    expected, y = copy.deepcopy(ours)(x), compiled(x)
    torch.testing.assert_close(y, expected)
    y.square().mean().backward()
    assert all(p.grad is not None for p in ours.parameters())


def test_accelerate_reaches_into_a_compiled_model():
    compiled = torch.compile(nn.Sequential(nn.LayerNorm(8)), backend="aot_eager")
    x = torch.randn(3, 8)
    before = compiled(x)
    tilewright.accelerate(compiled)
    assert "tilewright::layer_norm_forward" in ops_called(lambda: compiled(x))
    torch.testing.assert_close(compiled(x), before)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_encoder_fast_path_in_eval(batch_first, nested):
    """torch's encoder may leave its layers out and compute on its own, on nested tensors too: right either way."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.1, batch_first=batch_first)
    native = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested and batch_first).eval()
    ours = tilewright.accelerate(copy.deepcopy(native))
    padding = torch.arange(7) >= torch.tensor([[7], [4], [5]])
    x = torch.randn((3, 7, 16) if batch_first else (7, 3, 16))
    kept = ~padding if batch_first else ~padding.T
    for enabled in (torch.no_grad(), torch.enable_grad()):
        with enabled:
            y, expected = (m(x, src_key_padding_mask=padding) for m in (ours, native))
        torch.testing.assert_close(y[kept], expected[kept])
    dense = tilewright.accelerate(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    with torch.no_grad():
        assert "tilewright::layer_norm_forward" in ops_called(lambda: dense(x, src_key_padding_mask=padding))
    hooked = tilewright.accelerate(copy.deepcopy(native))
    hooked.layers[0].register_forward_hook(lambda *_: None)  # a hook turns the layer's own fast path off
    with torch.no_grad():
        torch.testing.assert_close(hooked(x, src_key_padding_mask=padding)[kept], y[kept])


def test_data_parallel_names():
    """Wrappers hold the same module objects, so their prefixes and state stay."""
    model = resnet(0.0)
    wrapped = nn.DataParallel(model)
    keys = list(wrapped.state_dict())
    tilewright.accelerate(wrapped, skip="module.8")
    assert list(wrapped.state_dict()) == keys
    assert wrapped.module is model
    assert type(model[8]) is nn.Linear
    assert type(model[0]) is TN.Conv2d


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrap", [nn.parallel.DistributedDataParallel, fully_shard])
def test_distributed(wrap):
    """Accelerated, then wrapped: native's gradients."""
    native, x = encoder(0.0), torch.randn(2, 5, 16)
    ours = wrap(tilewright.accelerate(copy.deepcopy(native)))
    for model in (ours, native):
        model(x).sin().sum().backward()
    for ours_parameter, parameter in zip(ours.parameters(), native.parameters(), strict=True):
        gradient = ours_parameter.grad
        gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        torch.testing.assert_close(gradient, parameter.grad)

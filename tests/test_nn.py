"""tilewright.nn's layers against torch.nn's: options, gradients, buffers, state dicts in both directions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tilewright
import tilewright.nn as TN
from tilewright.testing import DTYPES, assert_as_accurate

from .activations import ACTIVATIONS, reach
from .layer_pairs import pair

# A layer's arguments and an input; each is run by the class of that name in both packages.
LAYERS = {
    "linear": ("Linear", (7, 5), {}, (3, 4, 7)),
    "linear no bias": ("Linear", (7, 5), {"bias": False}, (7,)),
    "conv": ("Conv2d", (4, 6, 3), {}, (2, 4, 8, 9)),
    "conv options": (
        "Conv2d",
        (4, 6, (3, 2)),
        {"stride": 2, "padding": (1, 2), "dilation": 2, "groups": 2},
        (2, 4, 9, 8),
    ),
    "conv same": ("Conv2d", (4, 6, (4, 3)), {"padding": "same", "bias": False}, (2, 4, 8, 9)),
    "conv valid": ("Conv2d", (4, 6, 3), {"padding": "valid"}, (4, 8, 9)),
    **{
        f"conv {mode} {padding}": ("Conv2d", (3, 4, 4), {"padding": padding, "padding_mode": mode}, (2, 3, 8, 9))
        for mode in ("reflect", "replicate", "circular")
        for padding in ((2, 1), "same")
    },
    "layer_norm": ("LayerNorm", (7,), {}, (3, 4, 7)),
    "layer_norm two dims": ("LayerNorm", ((4, 7),), {"eps": 1e-3, "bias": False}, (3, 4, 7)),
    "layer_norm plain": ("LayerNorm", (7,), {"elementwise_affine": False}, (3, 7)),
    "batch_norm 1d": ("BatchNorm1d", (5,), {}, (6, 5)),
    "batch_norm 1d length": ("BatchNorm1d", (5,), {"affine": False}, (6, 5, 3)),
    "batch_norm 2d": ("BatchNorm2d", (5,), {"eps": 1e-3, "momentum": 0.3}, (3, 5, 4, 6)),
    "batch_norm 2d cumulative": ("BatchNorm2d", (5,), {"momentum": None}, (3, 5, 4, 6)),
    "batch_norm 2d untracked": ("BatchNorm2d", (5,), {"track_running_stats": False}, (3, 5, 4, 6)),
    "batch_norm 3d": ("BatchNorm3d", (5,), {}, (2, 5, 3, 4, 2)),
    "dropout off": ("Dropout", (0.0,), {}, (3, 7)),
    "dropout all": ("Dropout", (1.0,), {}, (3, 7)),
}


def _step(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers of one call."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.backward(dy.to(y.dtype))
    gradients = {f"d {name}": p.grad.clone() for name, p in layer.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **gradients, **{n: b.clone() for n, b in layer.named_buffers()}}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_layer_like_torchs(kind, dtype):
    name, arguments, options, shape = LAYERS[kind]
    native, ours = pair(name, arguments, options, dtype)
    wide = copy.deepcopy(native).double()
    for training in (True, True, False):  # running statistics carry over
        for layer in (native, ours, wide):
            layer.train(training)
        x = torch.randn(shape, dtype=dtype)
        dy = torch.randn(copy.deepcopy(wide)(x.double()).shape, dtype=dtype)  # the copy's buffers take the extra call
        steps = [
            _step(layer, t, g) for layer, t, g in ((ours, x, dy), (native, x, dy), (wide, x.double(), dy.double()))
        ]
        assert steps[0].keys() == steps[1].keys()
        for key, value in steps[0].items():
            if value.dtype in (torch.float64, torch.int64):  # native is the reference itself
                torch.testing.assert_close(value, steps[1][key], rtol=1e-10, atol=1e-10)
            else:
                assert_as_accurate(value, steps[1][key], steps[2][key], what=f"{kind} {key}")
        assert steps[0]["y"].stride() == steps[1]["y"].stride()


@pytest.mark.parametrize("kind", LAYERS)
def test_state_dict_and_repr_are_torchs(kind):
    name, arguments, options, _ = LAYERS[kind]
    native, ours = pair(name, arguments, options, torch.float32)
    assert isinstance(ours, getattr(nn, name))
    assert list(ours.state_dict()) == list(native.state_dict())
    assert repr(ours) == repr(native)
    fresh = type(native)(*arguments, **options)
    fresh.load_state_dict(ours.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), ours.state_dict().values(), strict=True))


@pytest.mark.parametrize("channels", [3, 8])
def test_channels_last_stays(channels):
    x = torch.randn(2, channels, 8, 8).contiguous(memory_format=torch.channels_last)
    for layer in (TN.Conv2d(channels, 4, 3), TN.BatchNorm2d(channels)):
        y = layer.to(memory_format=torch.channels_last)(x)
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_dropout_draws_from_torchs_generator():
    x, layer = torch.ones(64, 64), TN.Dropout(0.25)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, torch.where(first == 0, 0, 4 / 3 * x))
    assert 0 < (first == 0).sum() < x.numel()
    assert torch.equal(layer.eval()(x), x)
    inplace = TN.Dropout(0.5, inplace=True)
    assert inplace(x).data_ptr() == x.data_ptr()


BAD_CALLS = {
    "linear size": lambda m: m.Linear(4, 3)(torch.randn(2, 5)),
    "linear dtype": lambda m: m.Linear(4, 3)(torch.randn(2, 4, dtype=torch.float64)),
    "conv rank": lambda m: m.Conv2d(3, 4, 3)(torch.randn(3, 8)),
    "conv channels": lambda m: m.Conv2d(3, 4, 3)(torch.randn(1, 2, 8, 8)),
    "conv kernel too large": lambda m: m.Conv2d(3, 4, 9)(torch.randn(1, 3, 8, 8)),
    "conv padding mode": lambda m: m.Conv2d(3, 4, 3, padding_mode="mirror"),
    "layer_norm shape": lambda m: m.LayerNorm(4)(torch.randn(2, 5)),
    "batch_norm rank": lambda m: m.BatchNorm2d(4)(torch.randn(2, 4)),
    "batch_norm one value": lambda m: m.BatchNorm1d(4)(torch.randn(1, 4)),
    "batch_norm channels": lambda m: m.BatchNorm2d(4)(torch.randn(2, 5, 3, 3)),
    "dropout p": lambda m: m.Dropout(1.5),
    "attention heads": lambda m: m.MultiheadAttention(8, 3),
    "attention query size": lambda m: m.MultiheadAttention(8, 2)(*[torch.randn(3, 2, 6)] * 3),
    "attention rank": lambda m: m.MultiheadAttention(8, 2)(*[torch.randn(1, 3, 2, 8)] * 3),
    "attention key and value": lambda m: m.MultiheadAttention(8, 2)(
        torch.randn(3, 8), torch.randn(3, 8), torch.randn(4, 8)
    ),
    "attention mask shape": lambda m: m.MultiheadAttention(8, 2)(*[torch.randn(3, 8)] * 3, attn_mask=torch.zeros(2, 3)),
    "attention mask dtype": lambda m: m.MultiheadAttention(8, 2)(
        *[torch.randn(3, 8)] * 3, attn_mask=torch.zeros(3, 3, dtype=torch.int32)
    ),
    "attention padding shape": lambda m: m.MultiheadAttention(8, 2)(
        *[torch.randn(3, 2, 8)] * 3, key_padding_mask=torch.zeros(3, 2, dtype=torch.bool)
    ),
    "attention causal without mask": lambda m: m.MultiheadAttention(8, 2)(*[torch.randn(3, 8)] * 3, is_causal=True),
}


@pytest.mark.parametrize("kind", BAD_CALLS)
def test_bad_input_raises_what_torch_raises(kind):
    with pytest.raises(Exception) as native:  # noqa: PT011 - native's type is the expectation
        BAD_CALLS[kind](nn)
    with pytest.raises(native.type):
        BAD_CALLS[kind](TN)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_layers(activation):
    """Against their torch.nn base followed by the separate steps, from the base's own state."""
    act = ACTIVATIONS[activation]
    for name, arguments, options, shape in (
        ("Linear", (7, 5), {}, (3, 7)),
        ("Conv2d", (3, 3, 3), {"padding": 1, "padding_mode": "circular"}, (2, 3, 6, 5)),
        ("BatchNorm2d", (3,), {"momentum": None}, (2, 3, 6, 5)),
    ):
        native = getattr(nn, name)(*arguments, **options)
        fused = {"Linear": TN.LinearAct, "Conv2d": TN.ConvAct2d, "BatchNorm2d": TN.BatchNormAct2d}[name]
        ours = fused(*arguments, **options, activation=activation)
        ours.load_state_dict(native.state_dict())
        assert f"activation={activation}" in repr(ours)
        x, residual = (reach(activation) * torch.randn(shape) for _ in range(2))
        with_residual = () if name == "Linear" else (residual,)
        y = ours(x, *with_residual)
        expected = act(sum(with_residual, native(x)))
        torch.testing.assert_close(y, expected)
        dy = torch.randn(y.shape)
        y.backward(dy)
        expected.backward(dy)
        torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in native.parameters()])
        torch.testing.assert_close(dict(ours.named_buffers()), dict(native.named_buffers()))


def test_dropout_add_layers():
    x, residual = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    bias = torch.randn(16)
    torch.testing.assert_close(TN.DropoutAdd(0.0)(x, residual, bias), x + bias + residual)
    torch.testing.assert_close(TN.DropoutAdd(0.7).eval()(x, residual), x + residual)
    dropped = TN.DropoutAdd(0.5)(x, torch.zeros_like(x))
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, 2 * x))
    assert 0 < (dropped == 0).sum() < x.numel()

    layer = TN.DropoutAddLayerNorm(16, p=0.5, prenorm=True)
    nn.init.normal_(layer.weight)
    assert "p=0.5, prenorm=True" in repr(layer)
    y, total = layer(x, residual)
    torch.testing.assert_close(y, F.layer_norm(total, (16,), layer.weight, layer.bias))
    y, total = layer.eval()(x, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(TN.DropoutAddLayerNorm(16)(x, residual), F.layer_norm(x + residual, (16,)))


@pytest.mark.parametrize("make", [TN.LinearAct, TN.ConvAct2d])
def test_unknown_activation(make):
    with pytest.raises(ValueError, match="activation must be one of none, relu"):
        make(*(4, 4, 3)[: 2 + (make is TN.ConvAct2d)], activation="tanh")


def test_fused_layers_refuse_what_they_can_not_do():
    with pytest.raises(ValueError, match="inplace"):
        TN.DropoutAdd(0.5, inplace=True)
    with pytest.raises(ValueError, match="between 0 and 1"):
        TN.DropoutAddLayerNorm(4, p=-0.1)


def test_everything_public_is_listed():
    assert set(TN.__all__) >= {"Conv2d", "Linear", "LayerNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Dropout"}
    assert set(TN.__all__) >= {"MultiheadAttention", "LinearAct", "ConvAct2d", "BatchNormAct2d", "DropoutAdd"}
    assert all(getattr(TN, name).__doc__ for name in TN.__all__)
    assert tilewright.nn is TN


_IMAGE, _TEXT = (2, 3, 8, 8), (2, 5, 16)
COMPILED = {
    "Conv2d": (lambda: TN.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), [_IMAGE]),
    "ConvAct2d": (lambda: TN.ConvAct2d(3, 4, 3), [_IMAGE]),
    "BatchNorm2d": (lambda: TN.BatchNorm2d(3), [_IMAGE]),
    "BatchNormAct2d": (lambda: TN.BatchNormAct2d(3), [_IMAGE, _IMAGE]),
    "LayerNorm": (lambda: TN.LayerNorm(16), [_TEXT]),
    "Linear": (lambda: TN.Linear(16, 4), [_TEXT]),
    "LinearAct": (lambda: TN.LinearAct(16, 4), [_TEXT]),
    "DropoutAdd": (lambda: TN.DropoutAdd(0.0), [_TEXT, _TEXT]),
    "DropoutAddLayerNorm": (lambda: TN.DropoutAddLayerNorm(16), [_TEXT, _TEXT]),
    "MultiheadAttention": (lambda: TN.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=True), [_TEXT] * 3),
    "TransformerEncoderLayer": (lambda: TN.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True), [_TEXT]),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", COMPILED)
def test_compile_without_graph_breaks(kind, dynamic):
    make, shapes = COMPILED[kind]
    layer, inputs = make(), [torch.randn(shape) for shape in shapes]
    torch._dynamo.reset()
    y = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")(*inputs)
    torch.testing.assert_close(y, layer(*inputs))


def test_export():
    layer, x = TN.MultiheadAttention(16, 4, batch_first=True), torch.randn(_TEXT)
    options = {"need_weights": False, "attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)}
    exported = torch.export.export(layer, (x, x, x), options)
    torch.testing.assert_close(exported.module()(x, x, x, **options), layer(x, x, x, **options))

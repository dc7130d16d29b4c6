"""Accelerated models under torch.compile, in torch's encoder, and wrapped for several devices."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import tilewright
import tilewright.nn as TN
from tilewright.testing import ops_called

from .models import MODELS, encoder, resnet, three_of


@pytest.mark.parametrize("name", MODELS)
def test_compile(name):
    ours, _, _, x = three_of(name)
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
        called = ops_called(lambda: dense(x, src_key_padding_mask=padding))
        assert "tilewright::dropout_add_layer_norm_forward" in called
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

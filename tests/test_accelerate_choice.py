"""Which layers accelerate replaces: subclasses, only and skip, what is left alone and why, and the summary of it."""

import copy
import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import tilewright
import tilewright.nn as TN

from .models import DoublingSubclass, PlainSubclass, StandardizedConv, encoder


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
    assert summary.to_dicts()[0] == {"name": "0", "type": "Linear", "accelerated": True, "reason": "", "fused": ""}
    lines = str(summary).splitlines()
    assert lines[0].startswith("1 of 3 layers on tilewright")
    assert max(map(len, lines)) <= 100

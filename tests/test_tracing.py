"""torch.fx, torch.jit and torch.export on our functions and on accelerated models: they work, and keep our kernels."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, fx, nn

import tilewright
import tilewright.functional as TF
import tilewright.nn as TN
from tilewright.testing import ops_called

from .models import PlainSubclass, encoder, resnet

_X = (2, 3, 4, 4)
FUNCTIONS = {
    "linear": lambda x: TF.linear(x, x[0, 0]),
    "linear_act": lambda x: TF.linear_act(x, x[0, 0], activation="silu"),
    "matmul": lambda x: TF.matmul(x, x),
    "bmm": lambda x: TF.bmm(x[0], x[1]),
    "baddbmm": lambda x: TF.baddbmm(x[0], x[1], x[0], beta=0.5, alpha=2),
    "conv2d": lambda x: TF.conv2d(x, x, padding="same"),
    "conv2d_act": lambda x: TF.conv2d_act(x, x, activation="relu"),
    "layer_norm": lambda x: TF.layer_norm(x, (4,), eps=1e-3),
    "batch_norm": lambda x: TF.batch_norm(x, None, None, training=True),
    "batch_norm_act": lambda x: TF.batch_norm_act(x, None, None, training=True, residual=x),
    "dropout": lambda x: TF.dropout(x, 0.25),
    "dropout_add": lambda x: TF.dropout_add(x, x, 0.25),
    "dropout_add_layer_norm": lambda x: TF.dropout_add_layer_norm(x, x, (4,), p=0.25),
    "masked_scale": lambda x: TF.masked_scale(x, x > 0, 2.0),
    "scaled_dot_product_attention": lambda x: TF.scaled_dot_product_attention(x, x, x, scale=0.5),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fx_writes_our_functions_into_its_graph(name):
    function, x = FUNCTIONS[name], torch.randn(_X)
    graph = fx.symbolic_trace(function)
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"][-1] is getattr(TF, name)
    for traced in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        torch.manual_seed(1)
        expected = function(x)
        torch.manual_seed(1)
        assert torch.equal(traced(x), expected)
        assert f"tilewright::{name}" in ops_called(lambda traced=traced: traced(x))


def test_subclasses_see_natives_functions():
    seen = []

    class Watching(Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    TF.linear(torch.randn(2, 3).as_subclass(Watching), torch.randn(4, 3))
    assert torch.nn.functional.linear in seen


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(query=x, key=x, value=x, need_weights=False)[0]


TRACED_MODELS = {
    "resnet": (lambda: resnet(0.5), (2, 3, 8, 8)),
    "attention": (_Attention, (3, 2, 8)),
    "encoder layer": (lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), (2, 3, 8)),
    "norms": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Dropout()), (3, 4)),
    "planes": (lambda: nn.Sequential(nn.BatchNorm3d(2), nn.Conv2d(3, 2, 1, padding_mode="circular")), None),
}


@pytest.mark.parametrize("name", TRACED_MODELS)
def test_fx_takes_layers_as_it_takes_torchs(name):
    make, shape = TRACED_MODELS[name]
    native = make()
    ours = tilewright.accelerate(copy.deepcopy(native))
    graphs = [fx.symbolic_trace(model) for model in (ours, native)]
    nodes = [[(n.op, n.target, str(n.args), str(n.kwargs)) for n in g.graph.nodes] for g in graphs]
    assert nodes[0] == nodes[1]
    if shape is None:
        return
    x = torch.randn(shape)
    assert any(op.startswith("tilewright::") for op in ops_called(lambda: graphs[0](x)))
    for training in (True, False):  # a layer of the graph follows the flag, as torch's does
        results = []
        for model in (graphs[0].train(training), ours.train(training)):
            torch.manual_seed(3)
            results.append(model(x))
        torch.testing.assert_close(*results)


def test_fx_traces_into_layers_where_a_tracer_wants_that():
    class Into(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return not isinstance(m, nn.Linear) and super().is_leaf_module(m, module_qualified_name)

    model = tilewright.accelerate(nn.Sequential(nn.Linear(4, 4), nn.Dropout()))
    nodes = list(Into().trace(model).nodes)
    assert [n.target for n in nodes if n.op == "call_function"] == [TF.linear]
    assert [n.target for n in nodes if n.op == "call_module"] == ["1"]


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4), lambda: nn.LayerNorm(4), lambda: nn.Conv2d(3, 4, 1)])
def test_fx_looks_into_a_layer_that_it_is_handed(make):
    layer = tilewright.accelerate(make())
    graph, x = fx.symbolic_trace(layer), torch.randn(2, 3, 4, 4)
    assert "call_module" not in [n.op for n in graph.graph.nodes]
    torch.testing.assert_close(graph(x), layer(x))


def test_fx_traces_into_users_subclasses_and_runs_hooks_once():
    model = nn.Sequential(PlainSubclass(4, "traced into, as torch.fx traces into any class that is not torch's"))
    graph = fx.symbolic_trace(tilewright.accelerate(model, only=PlainSubclass))
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [TF.linear]
    hooked = tilewright.accelerate(nn.Sequential(nn.Linear(4, 4)))
    hooked[0].register_forward_hook(lambda module, args, y: y + 1)
    x = torch.randn(2, 4)
    torch.testing.assert_close(fx.symbolic_trace(hooked)(x), hooked(x))


@pytest.mark.parametrize("layer", [TN.LinearAct(4, 4), TN.ConvAct2d(3, 3, 1), TN.BatchNormAct2d(3)])
def test_fx_takes_fused_layers_as_leaves(layer):
    model, x = nn.Sequential(layer), torch.randn(_X)
    graph = fx.symbolic_trace(model)
    assert [n.op for n in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    torch.testing.assert_close(graph.eval()(x), model.eval()(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("make", [resnet, encoder])
def test_jit_trace_and_export_keep_our_ops(make):
    model = tilewright.accelerate(make(0.1)).eval()
    x = torch.randn((2, 3, 8, 8) if make is resnet else (2, 5, 16))
    with torch.no_grad():
        traced = torch.jit.trace(model, (x,))
        exported = torch.export.export(model, (x,)).module()
        for again in (traced, exported):
            torch.testing.assert_close(again(x), model(x))
            assert any(op.startswith("tilewright::linear") for op in ops_called(lambda again=again: again(x)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_script_gets_torchs_layers_back(caplog):
    """TorchScript compiles source, ours is not written for it: the layers are restored, and that is said."""
    native = resnet(0.0).eval()
    ours, x = tilewright.accelerate(copy.deepcopy(native)), torch.randn(2, 3, 8, 8)
    parameters = dict(ours.named_parameters())
    scripted = torch.jit.script(ours)
    assert "Conv2d restored" in caplog.text
    torch.testing.assert_close(scripted(x), native(x))
    assert [type(m) for m in ours.modules()] == [type(m) for m in native.modules()]
    assert all(p is parameters[name] for name, p in ours.named_parameters())
    layer = tilewright.accelerate(nn.Sequential(PlainSubclass(4, "")), only=PlainSubclass)
    torch.jit.script(layer)
    assert type(layer[0]) is PlainSubclass

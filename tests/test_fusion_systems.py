"""Fused modules inside the rest of PyTorch: compile, export, fx, jit, torch.func, data-parallel wrappers, threads."""

import copy
import cProfile
import gc
import threading
import weakref

import pytest
import torch
from torch import Tensor, fx, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.func import functional_call, grad, jvp, vmap

import tilewright
from tilewright._fusion import Fused
from tilewright.testing import ops_called

from .fusion_cases import CASES, BasicBlock, GptBlock, ResNet, encoder_layer

MODELS = {
    "basic": (lambda: ResNet(BasicBlock), (2, 3, 8, 8)),
    "gpt": (lambda: nn.Sequential(GptBlock(0.0), GptBlock(0.0)), (2, 5, 16)),
    "post-norm": (lambda: encoder_layer(0.0, False), (2, 5, 16)),
}


def _pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    make, shape = MODELS[name]
    native = make()
    fused = tilewright.accelerate(copy.deepcopy(native))
    assert any(isinstance(m, Fused) for m in fused.modules())
    return fused, native, torch.randn(shape)


@pytest.mark.parametrize("name", MODELS)
def test_compile(name):
    fused, native, x = _pair(name)
    fused(x)
    native(x)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        y, expected = compiled(x), native(x)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        y.square().sum().backward()
        expected.square().sum().backward()
    for p, q in zip(fused.parameters(), native.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_export_and_jit_trace(name):
    fused, native, x = _pair(name)
    fused.eval(), native.eval()
    expected = native(x)
    torch.testing.assert_close(torch.export.export(fused, (x,)).module()(x), expected)
    torch.testing.assert_close(torch.export.export(fused, (x,), strict=True).module()(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(fused, (x,))(x), expected)


@pytest.mark.parametrize("name", CASES)
def test_fx_traces_what_it_traces_without_fusion(name):
    native = CASES[name][0](0.1)
    graphs = []
    for model in (tilewright.accelerate(copy.deepcopy(native)), tilewright.accelerate(native, fuse=False)):
        try:
            graphs.append([(n.op, str(n.target), str(n.args)) for n in fx.symbolic_trace(model).graph.nodes])
        except (TypeError, RuntimeError, fx.proxy.TraceError) as error:
            graphs.append(type(error))
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("name", ["basic", "post-norm"])
def test_jit_script_gets_the_users_modules(name):
    fused, native, x = _pair(name)
    types = [type(m) for m in native.modules()]
    scripted = torch.jit.script(fused.eval())
    torch.testing.assert_close(scripted(x), native.eval()(x))
    assert [type(m) for m in fused.modules()] == types


@pytest.mark.parametrize("name", MODELS)
def test_torch_func(name):
    fused, native, x = _pair(name)
    fused.eval(), native.eval()
    results = []
    for model in (fused, native):
        parameters = {key: p.detach() * 1.1 for key, p in model.named_parameters()}

        def loss(parameters, x, model=model):
            return functional_call(model, parameters, (x,)).square().sum()

        once = functional_call(model, parameters, (x,))
        gradients = grad(loss)(parameters, x)
        mapped = vmap(lambda t, model=model: model(t[None])[0])(x)
        results.append([once, mapped, *gradients.values()])
        if name != "post-norm":  # native has no forward derivative of attention
            results[-1].append(jvp(model, (x,), (torch.ones_like(x),))[1])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_functional_call_reads_the_given_parameters_and_stays_fused():
    fused, native, x = _pair("basic")
    given = {key: p.detach() * 0.5 for key, p in fused.named_parameters()}
    for _ in range(12):
        y = functional_call(fused.eval(), given, (x,))
        torch.testing.assert_close(y, functional_call(native.eval(), given, (x,)))
    assert not ops_called(lambda: functional_call(fused, given, (x,))) & {"aten::relu", "aten::relu_"}


def test_gradients_of_gradients():
    fused, native, x = _pair("gpt")
    results = []
    for model in (fused, native):
        t = x.clone().requires_grad_()
        first = torch.autograd.grad(model(t).sin().sum(), t, create_graph=True)[0]
        results.append(torch.autograd.grad(first.square().sum(), t)[0])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wrap", [nn.parallel.DistributedDataParallel, fully_shard])
def test_data_parallel(wrap, name):
    fused, native, x = _pair(name)
    wrapped = wrap(fused)
    for _ in range(2):
        y, expected = wrapped(x), native(x)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        y.square().sum().backward()
        expected.square().sum().backward()
    for p, q in zip(wrapped.parameters(), native.parameters(), strict=True):
        gradient = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        torch.testing.assert_close(gradient, q.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("process_group")
def test_a_sharded_block_stays_sharded(caplog):
    block = tilewright.accelerate(BasicBlock(4, 4))
    fully_shard(block)
    tilewright.restore(block)
    assert isinstance(block, FSDPModule)
    assert "stays" in caplog.text
    assert block(torch.randn(2, 4, 5, 5)).shape == (2, 4, 5, 5)


def test_replicas_of_data_parallel_run():
    fused, native, _ = _pair("basic")
    replica = fused.layer1[0]._replicate_for_data_parallel()
    for name, child in fused.layer1[0].named_children():
        replica._modules[name] = child
    h = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(replica(h), native.layer1[0](h))


def test_first_calls_from_many_threads():
    """Tracing patches nothing that other threads use."""
    fused, native, x = _pair("post-norm")
    plain, errors = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.0)), []
    expected, other = native.eval()(x), plain(x)
    fused.eval()

    def run(repeat: int) -> None:
        try:
            for i in range(repeat):
                torch.testing.assert_close(fused(x, *[None] * (i % 3)), expected)
                torch.testing.assert_close(plain(x), other)
        except Exception as error:  # seen by the main thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(20,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_accelerate_under_a_profiler():
    with cProfile.Profile() as profiler:
        model = tilewright.accelerate(BasicBlock(4, 4))
        model(torch.randn(2, 4, 5, 5))
    assert isinstance(model, Fused)
    profiler.create_stats()
    assert any("forward" in name for _, _, name in profiler.stats)


def test_a_model_that_is_dropped_is_freed():
    model = tilewright.accelerate(ResNet(BasicBlock))
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    gone = [weakref.ref(m) for m in model.modules()]
    del model
    gc.collect()
    assert not any(reference() for reference in gone)


def test_finalizers_of_other_objects_are_no_part_of_a_trace():
    """A collection while a forward is traced would run them in its middle."""

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            freed.append(torch.rand(1))

    freed: list[Tensor] = []
    threshold = gc.get_threshold()
    try:
        for allocations in range(50, 2000, 50):  # until the next collection
            gc.set_threshold(allocations)
            Cycle()
            assert isinstance(tilewright.accelerate(BasicBlock(4, 4)), Fused)
            assert gc.isenabled()
    finally:
        gc.set_threshold(*threshold)
    assert freed

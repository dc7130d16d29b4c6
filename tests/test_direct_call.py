"""The short way from Python to the ops (csrc/direct_call.h): taken for plain calls, in nobody's way otherwise."""

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import tilewright.functional as TF
from tilewright import _C
from tilewright.testing import ops_called

A, B, C = torch.randn(2, 3, 4), torch.randn(2, 4, 5), torch.randn(2, 3, 5)
K = torch.randn(2, 6, 4)
X, W = torch.randn(3, 4), torch.nn.Parameter(torch.randn(5, 4))


# name -> (arguments of the short way, the public call)
CALLS = {
    "layer_norm": ((X, (4,), None, None, 1e-5), lambda: TF.layer_norm(X, (4,))),
    "scaled_dot_product_attention": (
        (A, K, K, None, 0.0, False, 0.5, False),
        lambda: TF.scaled_dot_product_attention(A, K, K, scale=0.5),
    ),
    "dropout": ((X, 0.25, True), lambda: TF.dropout(X, 0.25)),
    "matmul": ((A, B), lambda: TF.matmul(A, B)),
    "bmm": ((A, B), lambda: TF.bmm(A, B)),
    "baddbmm": ((C, A, B, 2, 0.5), lambda: TF.baddbmm(C, A, B, beta=2, alpha=0.5)),
    "linear": ((X, W, None), lambda: TF.linear(X, W)),
    "linear_act": ((X, W, None, "silu"), lambda: TF.linear_act(X, W, activation="silu")),
}


class _Subclass(Tensor):
    pass


def _direct(name: str):
    return getattr(_C.direct, name)


@pytest.mark.parametrize("name", CALLS)
def test_takes_the_plain_call_and_gives_the_ops_result(name):
    arguments, public = CALLS[name]
    draw = torch.get_rng_state()
    result = _direct(name)(*arguments)
    torch.set_rng_state(draw)
    assert torch.equal(result, public())
    torch.set_rng_state(draw)
    names = [argument.name for argument in getattr(torch.ops.tilewright, name).default._schema.arguments]
    assert torch.equal(result, getattr(torch.ops.tilewright, name).default(**dict(zip(names, arguments, strict=True))))
    assert result.requires_grad == any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


@pytest.mark.parametrize("name", CALLS)
def test_leaves_every_other_call_to_torch_ops(name):
    arguments = CALLS[name][0]
    call = _direct(name)
    assert call() is None
    assert call(*arguments[:-1]) is None
    assert call(*arguments, None) is None
    for position, argument in enumerate(arguments):
        others = [object(), 1j, [1]]
        if isinstance(argument, Tensor):
            others += [None, argument.detach().as_subclass(_Subclass), 1.0]
        elif isinstance(argument, str):
            others += ["\ud800", None]
        elif isinstance(argument, tuple):
            others += [(1.0,), (2**70,), None]
        elif isinstance(argument, bool):
            others += [1, None]
        elif isinstance(argument, (int, float)):
            others += [True, 2**70] + ([] if name == "scaled_dot_product_attention" else [None])  # scale may be None
        for other in others:
            assert call(*arguments[:position], other, *arguments[position + 1 :]) is None


def test_errors_are_the_ops_own():
    for call in (lambda: _C.direct.matmul(X, X), lambda: TF.matmul(X, X)):
        with pytest.raises(RuntimeError, match="matmul: input's last dimension"):
            call()
    for call in (lambda: _C.direct.linear_act(X, W, None, "no"), lambda: TF.linear_act(X, W, activation="no")):
        with pytest.raises(ValueError, match="activation must be one of"):
            call()
    with pytest.raises(TypeError, match=r"^matmul\(\)"):
        TF.matmul(X, [1.0])


class _Watching(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_modes_see_the_call(name):
    arguments, public = CALLS[name]
    with _Watching() as mode:
        assert _direct(name)(*arguments) is None
        public()
    assert getattr(TF, name) in mode.seen
    assert any(op.startswith("tilewright::") for op in ops_called(public))


# torch.jit.trace is deprecated, but it is still how a model is traced for TorchScript.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*")
def test_jit_trace_records_the_op():
    traced = torch.jit.trace(TF.matmul, (A, B))
    assert "tilewright::matmul" in str(traced.graph)
    other = torch.randn_like(B)
    assert torch.equal(traced(A, other), TF.matmul(A, other))


def test_make_fx_and_export_record_the_op():
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(TF.matmul)(A, B)
    assert any("tilewright.matmul" in str(node.target) for node in graph.graph.nodes)

    class Model(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return TF.matmul(a, b)

    for strict in (False, True):
        program = torch.export.export(Model(), (A, B), strict=strict)
        assert any("tilewright.matmul" in str(node.target) for node in program.graph.nodes)
        other = torch.randn_like(B)
        torch.testing.assert_close(program.module()(A, other), torch.matmul(A, other))


def test_compiles_whole_with_gradients():
    weight = W.detach().clone().requires_grad_()
    compiled = torch.compile(lambda x: TF.linear(x, weight).sum(), fullgraph=True, backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(X), weight)
    torch.testing.assert_close(grad, X.sum(0).expand(5, 4))


def test_transforms_pass_through():
    torch.testing.assert_close(torch.func.vmap(TF.matmul)(A, B), torch.bmm(A, B))
    _, tangent = torch.func.jvp(lambda a: TF.matmul(a, B), (A,), (A,))
    torch.testing.assert_close(tangent, torch.bmm(A, B))
    torch.testing.assert_close(torch.func.grad(lambda a: TF.matmul(a, B).sum())(A), B.sum(2)[:, None].expand_as(A))


def test_autocast_holds():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert TF.matmul(A, B).dtype == torch.bfloat16

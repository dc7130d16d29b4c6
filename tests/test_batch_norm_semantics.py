"""batch_norm and batch_norm_act as ops: threads, autograd of any order, compile, export, transforms, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import tilewright.functional as TF
from tilewright.testing import ops_called

from .test_batch_norm import LAST, SHAPES, make_input, run


def test_same_bits_for_any_thread_count():
    for kind in ("rows, two tiles", "planes, blocks", "channels_last, blocks", "one channel"):
        x = make_input(kind, torch.float32).repeat(4, *[1] * (len(SHAPES[kind][0]) - 1))
        results = []
        for threads in (1, 2):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            results.append(run(TF.batch_norm, x, [torch.ones(x.shape[1]), None], [None, None], True, x.sin()))
            torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values(), strict=True))


def _double_inputs(memory_format: torch.memory_format) -> list[Tensor]:
    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    x, residual = (make(3, 2, 2, 2).contiguous(memory_format=memory_format) for _ in range(2))
    return [t.requires_grad_() for t in (x, make(2), make(2), residual)]


def _fresh() -> list[Tensor]:
    return [torch.full((2,), 0.2, dtype=torch.float64), torch.full((2,), 1.5, dtype=torch.float64)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_gradcheck(activation, training, memory_format):
    inputs = _double_inputs(memory_format)

    def function(x, w, b, r):
        return TF.batch_norm_act(x, *_fresh(), w, b, training, activation=activation, residual=r)

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_double_backward_leaves_the_running_statistics(training):
    x, w, b, _ = _double_inputs(torch.contiguous_format)
    mean, var = _fresh()
    y = TF.batch_norm(x, mean, var, w, b, training)
    before = [mean.clone(), var.clone()]
    torch.autograd.grad(y.sin().sum(), x, create_graph=True)[0].sin().sum().backward()
    torch.testing.assert_close([mean, var], before, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_opcheck(activation, training, memory_format):
    ops, inputs = torch.ops.tilewright, _double_inputs(memory_format)
    x, w, b, residual = inputs
    torch.library.opcheck(ops.batch_norm.default, (x, *_fresh(), w, b, training, 0.1, 1e-5))
    fused = {"activation": activation, "residual": residual}
    torch.library.opcheck(ops.batch_norm_act.default, (x, *_fresh(), w, b, training, 0.1, 1e-5), fused)
    x, w, b, residual = (t.detach() for t in inputs)
    arguments = (x, w, b, *([None, None] if training else _fresh()), 1e-5, residual, activation, True)
    torch.library.opcheck(ops.batch_norm_forward.default, arguments)
    y, mean, var, saved = ops.batch_norm_forward.default(*arguments)
    relu = activation == "relu"
    wanted = [True, True, True, relu]
    arguments = (torch.randn_like(y), x, mean, var, w, saved if relu else None, 1e-5, training, wanted)
    torch.library.opcheck(ops.batch_norm_backward.default, arguments)
    torch.library.opcheck(ops.batch_norm_update_stats_.default, (*_fresh(), mean, var, 12, 0.1))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic, training):
    def function(x, w, b, residual, mean, var):
        y = TF.batch_norm(x, mean, var, w, b, training)
        return TF.batch_norm_act(y, mean, var, w, b, training, residual=residual)

    inputs = _double_inputs(LAST)
    statistics = _fresh(), _fresh()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    y, expected = compiled(*inputs, *statistics[0]), function(*inputs, *statistics[1])
    torch.testing.assert_close([y, *statistics[0]], [expected, *statistics[1]], rtol=0, atol=0)
    assert y.stride() == expected.stride()
    grads = [torch.autograd.grad(out.sin().sum(), inputs) for out in (y, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=["nchw", "nhwc"])
def test_saved_tensor_hooks_may_change_strides(memory_format, create_graph):
    """relu's bits lie as the input did in the forward, wherever a hook puts the input since."""
    x = torch.randn(4, 8, 4, 4).contiguous(memory_format=memory_format).requires_grad_()
    dy, other = torch.randn(4, 8, 4, 4), LAST if memory_format is torch.contiguous_format else torch.contiguous_format

    def pack(saved: Tensor) -> Tensor:
        return saved.contiguous(memory_format=other) if saved.dim() == 4 else saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        y = TF.batch_norm_act(x, None, None, training=True)
    plain = TF.batch_norm_act(x, None, None, training=True)
    grads = [torch.autograd.grad(out, x, dy, create_graph=create_graph)[0] for out in (y, plain)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=["nchw", "nhwc"])
def test_gradients_of_gradients_with_symbolic_shapes(memory_format):
    def second(x, dy):
        x = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(TF.batch_norm_act(x, None, None, training=True), x, dy, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    x, dy = (torch.randn(4, 5, 3, 3).contiguous(memory_format=memory_format) for _ in range(2))
    # At the traced size: native's own second derivative writes the count of values into the graph.
    traced = make_fx(second, tracing_mode="symbolic")(x, dy)
    torch.testing.assert_close(traced(x, dy), second(x, dy))


@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_the_op_and_the_buffers(strict):
    class Layer(torch.nn.BatchNorm1d):
        def forward(self, x):
            return TF.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)

    layer, x = Layer(4), torch.randn(5, 4)
    program = torch.export.export(layer, (x,), strict=strict).run_decompositions({})
    assert any("tilewright.batch_norm_forward" in str(node.target) for node in program.graph.nodes)
    module = program.module()
    torch.testing.assert_close(module(x), layer(x))
    torch.testing.assert_close(module.running_var, layer.running_var)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_transforms(training):
    x, w, b = (t.detach() for t in _double_inputs(torch.contiguous_format)[:3])
    statistics = [None, None] if training else _fresh()

    def ours(x):
        return TF.batch_norm(x, *statistics, w, b, training).sin()

    def native(x):
        return F.batch_norm(x, *statistics, w, b, training).sin()

    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(ours)(x), transform(native)(x))
    batch = torch.stack([x, x + 1])
    torch.testing.assert_close(torch.func.vmap(ours)(batch), torch.func.vmap(native)(batch))


def test_meta_and_inference_mode():
    x = torch.empty(2, 3, 4, 5, device="meta").contiguous(memory_format=LAST)
    assert TF.batch_norm(x, None, None, training=True).stride() == x.stride()
    mean, var, x = torch.zeros(3), torch.ones(3), torch.randn(6, 3)
    with torch.inference_mode():
        y = TF.batch_norm(x, mean, var, training=True)
    torch.testing.assert_close(y, F.batch_norm(x, None, None, training=True))
    torch.testing.assert_close(mean, 0.1 * x.mean(0))


def test_parameters_of_any_shape_with_one_value_per_channel():
    x, weight, bias = torch.randn(3, 4), torch.randn(4, 1), torch.randn(2, 2)
    statistics = [torch.zeros(4), torch.ones(4)]
    torch.testing.assert_close(TF.batch_norm(x, *statistics, weight, bias), F.batch_norm(x, *statistics, weight, bias))
    # Native fails in the backward of this; ours gives the gradient the parameter's shape.
    ours = run(TF.batch_norm, x, [weight, bias], statistics, True, x.sin())
    flat = run(F.batch_norm, x, [weight.flatten(), bias.flatten()], statistics, True, x.sin())
    torch.testing.assert_close(ours["dweight"], flat["dweight"].view(4, 1))
    torch.testing.assert_close(ours["dbias"], flat["dbias"].view(2, 2))


def test_other_dtypes_and_subclasses_go_to_native():
    class Counting(Tensor):
        seen: list = []  # noqa: RUF012

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    TF.batch_norm(torch.randn(3, 4).as_subclass(Counting), None, None, training=True)
    assert F.batch_norm in Counting.seen
    x = torch.randn(3, 4).relu()
    torch.testing.assert_close(
        TF.batch_norm_act(x, None, None, training=True, residual=torch.ones(4)),  # a residual that broadcasts
        F.relu(F.batch_norm(x, None, None, training=True) + 1),
    )


# s: running statistics, which must be unchanged afterwards.
BAD = {
    "one value per channel": lambda f, s: f(torch.randn(1, 4), *s, training=True),
    "one value per channel, 4d": lambda f, s: f(torch.randn(1, 4, 1, 1), *s, training=True),
    "no statistics in eval": lambda f, s: f(torch.randn(3, 4), None, None),
    "no running_var in eval": lambda f, s: f(torch.randn(3, 4), s[0], None),
    "running_mean alone": lambda f, s: f(torch.randn(3, 4), s[0], None, training=True),
    "running_mean size": lambda f, s: f(torch.randn(3, 5), *s, training=True),
    "weight size": lambda f, s: f(torch.randn(3, 4), *s, torch.randn(5), training=True),
    "bias size": lambda f, s: f(torch.randn(3, 4), *s, None, torch.randn(5), training=True),
    "weight dtype": lambda f, s: f(torch.randn(3, 4), *s, torch.randn(4).double(), training=True),
    "statistics dtype": lambda f, s: f(torch.randn(3, 4).double(), *s, training=True),
    "one dimension": lambda f, s: f(torch.randn(4), *s),
    "no dimension": lambda f, s: f(torch.tensor(1.0), *s),
    "eps zero": lambda f, s: f(torch.randn(3, 4), *s, training=True, eps=0.0),
    "eps negative": lambda f, s: f(torch.randn(3, 4), *s, eps=-1.0),
    "momentum None": lambda f, s: f(torch.randn(3, 4), *s, training=True, momentum=None),
    "not a tensor": lambda f, s: f([[1.0, 2.0]], None, None),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_raises_what_native_raises(kind):
    with pytest.raises(Exception) as native:  # noqa: PT011 - native's type is the expectation
        BAD[kind](F.batch_norm, [torch.zeros(4), torch.ones(4)])
    for function in (TF.batch_norm, TF.batch_norm_act):
        statistics = [torch.zeros(4), torch.ones(4)]
        with pytest.raises(native.type):
            BAD[kind](function, statistics)
        torch.testing.assert_close(statistics, [torch.zeros(4), torch.ones(4)], rtol=0, atol=0)


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"activation must be .* got 'tanh'"):
        TF.batch_norm_act(torch.randn(3, 4), None, None, training=True, activation="tanh")


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("shape", [(3, 1, 1), (4, 1, 5, 1), (1,), ()], ids=str)
def test_residuals_broadcast_in_the_kernel(shape, activation):
    x = torch.randn(4, 3, 5, 6, requires_grad=True)
    skip = torch.randn(shape, requires_grad=True)
    results = []
    for function in (TF.batch_norm_act, _separate):
        y = function(x, None, None, training=True, activation=activation, residual=skip)
        results.append((y, *torch.autograd.grad(y.sin().sum(), (x, skip))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    called = ops_called(lambda: TF.batch_norm_act(x, None, None, training=True, activation=activation, residual=skip))
    assert "tilewright::batch_norm_forward" in called
    assert not any(name in called for name in ("aten::add.Tensor", "aten::gelu", "aten::relu"))


def _separate(x, mean, var, *, training, activation, residual):
    y = F.batch_norm(x, mean, var, training=training) + residual
    return {"relu": F.relu, "gelu": F.gelu}[activation](y)


# Contiguous in a format that their strides do not suggest, because a dimension of size 1 has an odd stride.
ODD_STRIDES = {
    "one image, permuted": lambda: torch.randn(5, 4, 3).permute(2, 0, 1)[None],
    "one row": lambda: torch.randn(2, 6, 1, 3).permute(0, 3, 2, 1),
    "one column": lambda: torch.randn(2, 6, 3).transpose(1, 2)[..., None],
    "one image, batch inside": lambda: torch.randn(1, 2, 6, 3).permute(1, 3, 0, 2),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", ODD_STRIDES)
def test_odd_strides_of_size_one(kind, training):
    x = ODD_STRIDES[kind]().requires_grad_()
    mean, var = torch.randn(x.shape[1]), torch.rand(x.shape[1]) + 0.5
    dy = torch.randn(x.shape).contiguous(memory_format=LAST)
    (dx,) = torch.autograd.grad(TF.batch_norm(x, mean.clone(), var.clone(), training=training), x, dy)
    plain = x.detach().double().contiguous().requires_grad_()  # native's own is wrong for some of these
    y = F.batch_norm(plain, mean.double(), var.double(), training=training)
    (expected,) = torch.autograd.grad(y, plain, dy.double())
    torch.testing.assert_close(dx.double(), expected, rtol=1e-5, atol=1e-5)
    assert dx.stride() == torch.empty_like(x, memory_format=torch._prims_common.suggest_memory_format(x)).stride()

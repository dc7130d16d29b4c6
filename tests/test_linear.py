"""linear and linear_act against float64 math and against native."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import DTYPES, assert_as_accurate, ops_called

from .activations import ACTIVATIONS, reach
from .exact_activations import exact_activation

SHAPES = [
    ((7,), 7, 5),
    ((1, 40), 40, 33),
    ((3, 9), 9, 70),
    ((2, 9, 40), 40, 17),
    ((70, 33), 33, 65),
    ((20, 500), 500, 6),
    ((90, 500), 500, 37),
    ((401, 30), 30, 129),
    ((4100, 24), 24, 40),
]


def _native_linear_act(x: Tensor, w: Tensor, b: Tensor | None, activation: str) -> Tensor:
    return ACTIVATIONS[activation](F.linear(x, w, b))


def _ours_linear_act(x: Tensor, w: Tensor, b: Tensor | None, activation: str) -> Tensor:
    return TF.linear_act(x, w, b, activation=activation)


def _run(function, tensors: list[Tensor | None], dy: Tensor, *extra: str) -> list[Tensor]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves, *extra)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *[t.grad for t in leaves if t is not None]]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_forward_and_backward(isa, dtype, shape, with_bias):
    x_shape, inner, outer = shape

    # Whole numbers: products and sums are exact in every type, so any disagreement is an error and not a rounding.
    def make(*s):
        return torch.randint(-2, 3, s).to(dtype)

    tensors = [make(*x_shape), make(outer, inner), make(outer) if with_bias else None]
    dy = make(*x_shape[:-1], outer)
    ours, native = (_run(f, tensors, dy) for f in (TF.linear, F.linear))
    for name, a, b in zip(("y", "dx", "dw", "db"), ours, native, strict=False):
        assert torch.equal(a, b), name
        assert a.stride() == b.stride(), name


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_act_forward_and_backward(isa, dtype, activation, with_bias):
    for x_shape, inner, outer in SHAPES:
        tensors = [reach(activation) * torch.randn(x_shape), torch.randn(outer, inner) / inner**0.5, torch.randn(outer)]
        tensors = [t.to(dtype) for t in tensors[: 3 if with_bias else 2]] + ([] if with_bias else [None])
        dy = torch.randn(*x_shape[:-1], outer).to(dtype)
        wide = [None if t is None else t.double() for t in tensors]
        ours = _run(_ours_linear_act, tensors, dy, activation)
        native = _run(_native_linear_act, tensors, dy, activation)
        reference = _run(_native_linear_act, wide, dy.double(), activation)
        for name, a, b, c in zip(("y", "dx", "dw", "db"), ours, native, reference, strict=False):
            assert_as_accurate(a, b, c, what=f"{name} {x_shape}")


# The largest relative error for |z| < 4, in roundings (native's gelu: thousands, near -4). gelu_tanh carries that of
# its exponent, an argument near 20.
ACTIVATION_ROUNDINGS = {"relu": 0, "relu6": 0, "gelu": 12, "gelu_tanh": 32, "silu": 4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ACTIVATION_ROUNDINGS)
def test_activations_over_the_whole_range(isa, dtype, activation):
    """A 1 x 1 identity layer shows the activation alone; against 40 digits."""
    z = torch.cat([torch.linspace(-12, 12, 4001), torch.linspace(-1e-3, 1e-3, 41), torch.linspace(-90, 90, 181)])
    z = z.to(dtype)[:, None].requires_grad_()
    y = TF.linear_act(z, torch.ones(1, 1, dtype=dtype), activation=activation)
    (slope,) = torch.autograd.grad(y.sum(), z)
    native = ACTIVATIONS[activation](z)
    (native_slope,) = torch.autograd.grad(native.sum(), z)
    exact, exact_slope = exact_activation(activation, z)
    assert_as_accurate(y.detach(), native.detach(), exact)
    assert_as_accurate(slope, native_slope, exact_slope)
    rounding = torch.finfo(dtype).eps / 2
    middle = z.detach().abs() < 4
    error = ((y.detach().double() - exact).abs() / exact.abs().clamp(min=1e-30))[middle]
    assert error.max() <= ACTIVATION_ROUNDINGS[activation] * rounding
    assert (slope.double() - exact_slope).abs().max() <= 4 * rounding


@pytest.mark.parametrize("activation", ACTIVATION_ROUNDINGS)
def test_not_finite_like_native_in_float64(isa, activation):
    # float64, because native's float32 gelu turns +Inf into NaN on some CPUs.
    z = torch.tensor([[float("inf")], [float("-inf")], [float("nan")], [1e30], [-1e30], [0.0], [-0.0]])
    ours, native = (
        TF.linear_act(z, torch.ones(1, 1), activation=activation),
        ACTIVATIONS[activation](z.double()).float(),
    )
    torch.testing.assert_close(ours, native, equal_nan=True)


def test_own_kernels_do_the_work():
    x, w, b = torch.randn(4, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True), torch.randn(6)
    called = ops_called(lambda: TF.linear_act(x, w, b).sum().backward())
    assert {"tilewright::linear_forward", "tilewright::activation_backward", "tilewright::linear_backward"} <= called
    assert not any(name in called for name in ("aten::linear", "aten::addmm", "aten::mm", "aten::gelu"))


def test_strided_and_odd_arguments_like_native():
    x, w, b = torch.randn(4, 6, 8), torch.randn(5, 8), torch.randn(5)
    cases = [
        (x.transpose(0, 1), w, b),
        (x[:, ::2], w, b),
        (x[..., ::2], w[:, ::2], b),
        (x, torch.randn(8, 5).T, torch.randn(10)[::2]),
        (x[:, :, :1].expand(4, 6, 8), w, b),
        (x, torch.randn(8), None),
        (x, torch.randn(8), torch.randn(())),
        (x, w, torch.randn(1)),
        (x[0], w, torch.randn(6, 5)),
        (x[:0], w, b),
        (torch.randn(3, 0), torch.randn(5, 0), b),
        (torch.randn(3, 8), torch.randn(0, 8), torch.randn(0)),
    ]
    for arguments in cases:
        ours, native = TF.linear(*arguments), F.linear(*arguments)
        torch.testing.assert_close(ours, native)
        assert ours.stride() == native.stride()
        leaves = [[None if t is None else t.detach().clone().requires_grad_() for t in arguments] for _ in range(2)]
        for function, own in zip((TF.linear, F.linear), leaves, strict=True):
            function(*own).sin().sum().backward()
        for a, b_ in zip(*leaves, strict=True):
            if a is not None:
                torch.testing.assert_close(a.grad, b_.grad)


def test_saves_no_more_than_native():
    def saved(function, *tensors: Tensor) -> int:
        count = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: count.append(t.numel()) or t, lambda t: t):
            function(*tensors)
        return sum(count)

    x, w, b = torch.randn(40, 8), torch.randn(6, 8), torch.randn(6)
    for needs in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)):
        leaves = [t.clone().requires_grad_(bool(n)) for t, n in zip((x, w, b), needs, strict=True)]
        assert saved(TF.linear, *leaves) <= saved(F.linear, *leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "inner", "outer"), [(700, 300, 500), (5000, 24, 40)])
def test_same_bits_for_any_thread_count(rows, inner, outer, dtype):
    results = []
    before = torch.get_num_threads()
    tensors = [torch.randn(*size).to(dtype) for size in ((rows, inner), (outer, inner), (outer,))]
    dy = torch.randn(rows, outer).to(dtype)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(_run(_ours_linear_act, tensors, dy, "gelu"))
    torch.set_num_threads(before)
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def _double_inputs() -> tuple[Tensor, Tensor, Tensor]:
    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    return make(2, 3, 4), make(5, 4), make(5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(isa, activation):
    def function(x, w, b):
        return TF.linear_act(x, w, b, activation=activation)

    assert torch.autograd.gradcheck(function, _double_inputs(), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, _double_inputs())


def test_gradgradcheck_with_parts_not_needed():
    x, w, b = _double_inputs()
    for wanted in range(3):
        leaves = [x, w, b]
        rest = [t.detach() for t in leaves]

        def function(leaf: Tensor, wanted: int = wanted, rest: list[Tensor] = rest) -> Tensor:
            return TF.linear(*[leaf if i == wanted else t for i, t in enumerate(rest)])

        assert torch.autograd.gradgradcheck(function, (leaves[wanted],))


def test_opcheck():
    x, w, b = _double_inputs()
    ops = torch.ops.tilewright
    torch.library.opcheck(ops.linear.default, (x, w, b))
    torch.library.opcheck(ops.linear_act.default, (x, w, b), {"activation": "silu"})
    x, w, b = x.detach(), w.detach(), b.detach()
    for activation in ACTIVATIONS:
        torch.library.opcheck(ops.linear_forward.default, (x, w, b, activation, True))
    y = F.linear(x, w, b)
    for mask in ([True, True, True], [False, True, False], [True, False, False]):
        torch.library.opcheck(ops.linear_backward.default, (y, x if mask[1] else None, w if mask[0] else None, mask))
    torch.library.opcheck(ops.activation_backward.default, (y, y, "gelu"))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_compile(dynamic, activation):
    inputs = _double_inputs()

    def function(x, w, b):
        return TF.linear_act(x, w, b, activation=activation)

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    y, expected = compiled(*inputs), function(*inputs)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    grads = [torch.autograd.grad(out.sin().sum(), inputs) for out in (y, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_transforms():
    x, w, b = (t.detach() for t in _double_inputs())

    def ours(x):
        return TF.linear_act(x, w, b).sin()

    def native(x):
        return F.gelu(F.linear(x, w, b)).sin()

    for transform in (torch.func.vmap, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(ours)(x), transform(native)(x))


def test_autocast():
    x, w, b = torch.randn(4, 8), torch.randn(6, 8, requires_grad=True), torch.randn(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pairs = [(TF.linear(x, w, b), F.linear(x, w, b)), (TF.linear_act(x, w, b), F.gelu(F.linear(x, w, b)))]
    for ours, native in pairs:
        assert ours.dtype == native.dtype == torch.bfloat16
        torch.testing.assert_close(ours, native, rtol=2e-2, atol=2e-2)
    pairs[0][0].sum().backward()
    assert w.grad is not None
    assert w.grad.dtype == torch.float32


BAD = {
    "inner sizes": lambda f: f(torch.randn(3, 5), torch.randn(4, 3)),
    "bias size": lambda f: f(torch.randn(3, 5), torch.randn(4, 5), torch.randn(3)),
    "scalar input": lambda f: f(torch.randn(()), torch.randn(4, 5)),
    "dtypes": lambda f: f(torch.randn(3, 5), torch.randn(4, 5).double()),
    "bias dtype": lambda f: f(torch.randn(3, 5), torch.randn(4, 5), torch.randn(4).double()),
    "weight rank": lambda f: f(torch.randn(3, 5), torch.randn(2, 4, 5)),
    "not a tensor": lambda f: f([1.0], torch.randn(1, 1)),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_raises_what_native_raises(kind):
    with pytest.raises(Exception) as native:  # noqa: PT011 - native's type is the expectation
        BAD[kind](F.linear)
    for function in (TF.linear, TF.linear_act):
        with pytest.raises(native.type):
            BAD[kind](function)


def test_unknown_activation():
    with pytest.raises(ValueError, match="none, relu, relu6, gelu, gelu_tanh, silu, got 'tanh'"):
        TF.linear_act(torch.randn(2, 3), torch.randn(4, 3), activation="tanh")


@pytest.mark.parametrize(("rows", "outputs"), [(1000, 14), (2048, 256), (10000, 7), (33, 5)])
def test_bias_gradient_of_equal_rows(isa, rows, outputs):
    """Equal values round the same way at every step of a chain: its length shows in the bias gradient."""
    x, weight, bias = torch.randn(rows, 15), torch.randn(outputs, 15), torch.randn(outputs, requires_grad=True)
    for wants_weight in (True, False):
        weight.requires_grad_(wants_weight)
        dy = (torch.rand(1, outputs) + 0.1).expand(rows, outputs)
        gradient = torch.autograd.grad(TF.linear(x, weight, bias), bias, dy)[0]
        error = (gradient.double() / dy.double().sum(0) - 1).abs().max().item()
        assert error < 24 * 2**-24

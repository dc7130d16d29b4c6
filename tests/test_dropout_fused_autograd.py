"""PyTorch around the fused dropout ops: gradients of gradients, opcheck, compile, transforms, threads, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF

OPS = torch.ops.tilewright
FUNCTIONS = {
    "dropout_add": lambda x, r, w, b: TF.dropout_add(x, r, 0.4) * w,
    "dropout_add, bias": lambda x, r, w, b: TF.dropout_add(x, r, 0.4, bias=b) * w,
    "norm": lambda x, r, w, b: TF.dropout_add_layer_norm(x, r, (5,), w, b, p=0.4),
    "norm, prenorm": lambda x, r, w, b: sum(TF.dropout_add_layer_norm(x, r, (5,), w, b, p=0.4, prenorm=True)),
    "norm, eval": lambda x, r, w, b: sum(TF.dropout_add_layer_norm(x, r, (5,), w, b, prenorm=True)),
}


def _inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((3, 5), (3, 5), (5,), (5,))]


def _seeded(function):
    def call(*inputs):
        torch.manual_seed(11)
        return function(*inputs)

    return call


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck(isa, name):
    function = _seeded(FUNCTIONS[name])
    inputs = _inputs()
    assert torch.autograd.gradcheck(function, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compile_gives_the_eager_result(name, backend):
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend=backend)
    inputs = _inputs(torch.float32)
    results = []
    for call in (_seeded(FUNCTIONS[name]), _seeded(compiled)):
        y = call(*inputs)
        results.append([y, *torch.autograd.grad(y.sin().sum(), inputs, allow_unused=True)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_are_natives(name):
    x, r, w, b = (t.detach() for t in _inputs())
    gradient = torch.func.grad(lambda x: _seeded(FUNCTIONS[name])(x, r, w, b).square().sum())(x)
    torch.manual_seed(11)
    dropped = F.dropout(x + b if "bias" in name else x, 0.4, training="eval" not in name)
    noise = torch.where(x + b == 0, 0, dropped / (x + b if "bias" in name else x))
    leaf = x.clone().requires_grad_()
    z = r + (leaf + b if "bias" in name else leaf) * noise
    y = F.layer_norm(z, (5,), w, b)
    expected = {"dropout_add": z * w, "dropout_add, bias": z * w, "norm": y}.get(name, y + z)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), leaf)[0])


def test_opcheck():
    x, r, w, b = (t.detach() for t in _inputs(torch.float32))
    seed = torch.tensor([7])
    check = torch.library.opcheck
    check(OPS.dropout_add_forward.default, (x, r, b, seed, 0.3))
    check(OPS.dropout_add_forward.default, (x.mT, r.mT, None, seed, 0.3))
    for mask in ([True, True], [False, True], [True, False]):
        check(OPS.dropout_add_backward.default, (x, seed, 0.3, mask))
    check(OPS.masked_scale_forward.default, (x, r > 0, 2.0))
    for s in (seed, None):
        for keep_sum in (True, False):
            check(OPS.dropout_add_layer_norm_forward.default, (x, r, (5,), w, b, 1e-5, s, 0.3, keep_sum))
    _, z, mean, rstd = OPS.dropout_add_layer_norm_forward(x, r, (5,), w, b, 1e-5, seed, 0.3, True)
    for mask in ([True] * 4, [True, False, False, False], [False, False, True, True]):
        for grad_sum in (r, None):
            arguments = (x, grad_sum, z, (5,), mean, rstd, w, seed, 0.3, mask)
            check(OPS.dropout_add_layer_norm_backward.default, arguments)
    x, r, w, b = _inputs(torch.float32)
    check(OPS.dropout_add.default, (x, r, 0.3, True, b))
    check(OPS.dropout_add_layer_norm.default, (x, r, (5,), w, b, 1e-5, 0.3, True))
    check(OPS.dropout_add_layer_norm_prenorm.default, (x, r, (5,), w, b, 1e-5, 0.3, True))
    check(OPS.masked_scale.default, (x, r > 0, 2.0))


@pytest.mark.parametrize("name", ["add", "norm"])
def test_same_bits_for_any_thread_count(name):
    x, r, w, b = (torch.randn(*shape, requires_grad=True) for shape in ((700, 300), (700, 300), (300,), (300,)))
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(11)
        if name == "add":
            y = TF.dropout_add(x, r, 0.2, bias=b) * w
        else:
            y = sum(TF.dropout_add_layer_norm(x, r, (300,), w, b, p=0.2, prenorm=True))
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, r, w, b))])
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_saved_bytes():
    # dropout_add keeps the seed; with the norm, z and its statistics: no mask, and neither input nor residual.
    rows, cols = 64, 32
    x, r = (torch.randn(rows, cols, requires_grad=True) for _ in range(2))
    for function, expected in (
        (lambda: TF.dropout_add(x, r), 8),
        (lambda: TF.dropout_add_layer_norm(x, r, (cols,), p=0.5), 8 + 4 * rows * (cols + 2)),
    ):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            function()
        assert sum(t.nbytes for t in kept) == expected


def _native_add(x, r, p=0.5, training=True, *, bias=None):
    return r + F.dropout(x if bias is None else x + bias, p, training)


def _native_norm(x, r, shape, w=None, b=None, eps=1e-5, p=0.0, training=True):
    return F.layer_norm(r + F.dropout(x, p, training), shape, w, b, eps)


ADD, NORM = (TF.dropout_add, _native_add), (TF.dropout_add_layer_norm, _native_norm)
BAD = {
    "p above": (ADD, lambda f: f(torch.randn(3), torch.randn(3), 1.5)),
    "p nan": (ADD, lambda f: f(torch.randn(3), torch.randn(3), float("nan"))),
    "shapes": (ADD, lambda f: f(torch.randn(3), torch.randn(4))),
    "bias shape": (ADD, lambda f: f(torch.randn(2, 3), torch.randn(2, 3), bias=torch.randn(4))),
    "training": (ADD, lambda f: f(torch.randn(3), torch.randn(3), 0.5, 1)),
    "norm, p below": (NORM, lambda f: f(torch.randn(3), torch.randn(3), (3,), p=-1.0)),
    "norm, shapes": (NORM, lambda f: f(torch.randn(2, 3), torch.randn(2, 4), (3,))),
    "norm, normalized_shape": (NORM, lambda f: f(torch.randn(2, 3), torch.randn(2, 3), (4,))),
    "norm, weight": (NORM, lambda f: f(torch.randn(2, 3), torch.randn(2, 3), (3,), torch.randn(4))),
    "norm, bias": (NORM, lambda f: f(torch.randn(2, 3), torch.randn(2, 3), (3,), None, torch.randn(2, 3))),
    "scale, shapes": (
        (TF.masked_scale, lambda x, m, s: x * m * s),
        lambda f: f(torch.randn(3), torch.ones(4).bool(), 1.0),
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_raises_what_native_raises(kind):
    (ours, native), call = BAD[kind]
    with pytest.raises(Exception) as expected:  # noqa: PT011 - native's type is the expectation
        call(native)
    with pytest.raises(expected.type):
        call(ours)


def test_not_a_tensor():
    for call in (
        lambda: TF.dropout_add([1.0], torch.randn(1)),
        lambda: TF.dropout_add_layer_norm(torch.randn(1), [1.0], (1,)),
        lambda: TF.masked_scale(torch.randn(1), True, 1.0),
    ):
        with pytest.raises(TypeError):
            call()


def test_sum_of_frozen_inputs_needs_no_gradient():
    x, residual = torch.randn(3, 5), torch.randn(3, 5)
    weight = torch.randn(5, requires_grad=True)
    y, total = TF.dropout_add_layer_norm(x, residual, (5,), weight, None, p=0.4, prenorm=True)
    assert y.requires_grad
    assert not total.requires_grad
    (grad,) = torch.autograd.grad(y.sum(), [weight])
    torch.testing.assert_close(grad, F.layer_norm(total, (5,)).sum(0))

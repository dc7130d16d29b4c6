"""matmul, bmm and baddbmm under autograd's checks, opcheck, torch.compile, transforms and autocast; what is native's,
and what is refused."""

import pytest
import torch
from torch import Tensor

import tilewright.functional as TF


def _double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shapes", [((3, 2, 4), (4, 3)), ((2, 1, 3, 4), (3, 4, 2)), ((4,), (2, 4, 3)), ((4,), (4,))])
def test_gradcheck(isa, shapes):
    inputs = tuple(_double(*shape) for shape in shapes)
    assert torch.autograd.gradcheck(TF.matmul, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(TF.matmul, inputs)

    def left_only(x):
        return TF.matmul(x, inputs[1].detach())

    assert torch.autograd.gradgradcheck(left_only, inputs[:1])


def test_gradcheck_baddbmm(isa):
    def function(x, a, b):
        return TF.baddbmm(x, a, b, beta=0.5, alpha=2.0)

    for shape in ((2, 3, 5), (3, 1), (5,)):
        inputs = (_double(*shape), _double(2, 3, 4), _double(2, 4, 5))
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_opcheck():
    a, b, x = _double(2, 3, 4), _double(2, 4, 5), _double(3, 5)
    ops = torch.ops.tilewright
    torch.library.opcheck(ops.matmul.default, (a, b))
    torch.library.opcheck(ops.bmm.default, (a, b))
    torch.library.opcheck(ops.baddbmm.default, (x, a, b), {"beta": 0.5, "alpha": 2})
    a, b, x = a.detach(), b.detach(), x.detach()
    torch.library.opcheck(ops.matmul_forward.default, (a, b))
    torch.library.opcheck(ops.baddbmm_forward.default, (x, a, b, 0.5, 2))
    grad = torch.randn(2, 3, 5, dtype=torch.float64)
    for left, right, mask in ((a, b, [True, True]), (a, None, [False, True]), (None, b, [True, False])):
        arguments = (grad, left, right, a.shape, b.shape, 1, mask)
        torch.library.opcheck(ops.matmul_backward.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (TF.matmul, ((2, 3, 4), (4, 5))),
        (TF.bmm, ((2, 3, 4), (2, 4, 5))),
        (TF.baddbmm, ((3, 5), (2, 3, 4), (2, 4, 5))),
    ],
    ids=["matmul", "bmm", "baddbmm"],
)
def test_compile(dynamic, function, shapes):
    inputs = tuple(_double(*shape) for shape in shapes)
    compiled = torch.compile(lambda *args: function(*args), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    y, expected = compiled(*inputs), function(*inputs)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    grads = [torch.autograd.grad(out.sin().sum(), inputs) for out in (y, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_transforms():
    a, b = torch.randn(3, 4, 5), torch.randn(3, 5, 2)
    for transform in (torch.func.vmap, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(TF.matmul)(a, b), transform(torch.matmul)(a, b))


def test_autocast():
    a, b = torch.randn(2, 8, 8, requires_grad=True), torch.randn(2, 8, 8)
    for ours, native in ((TF.matmul, torch.matmul), (TF.bmm, torch.bmm)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, expected = ours(a, b), native(a, b)
        assert y.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(y, expected)
        assert torch.autograd.grad(y.sum(), a)[0].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert TF.baddbmm(a, a, b).dtype == torch.baddbmm(a, a, b).dtype == torch.bfloat16


def test_other_dtypes_are_natives():
    for dtype in (torch.int64, torch.complex64):
        a, b = torch.ones(3, 4, dtype=dtype), torch.ones(4, 5, dtype=dtype)
        torch.testing.assert_close(TF.matmul(a, b), torch.matmul(a, b))


BAD = {
    "inner sizes": ("matmul", lambda f: f(torch.randn(3, 5), torch.randn(4, 3))),
    "inner sizes, vector": ("matmul", lambda f: f(torch.randn(3), torch.randn(4))),
    "batches do not broadcast": ("matmul", lambda f: f(torch.randn(2, 3, 5), torch.randn(3, 5, 3))),
    "scalar": ("matmul", lambda f: f(torch.randn(()), torch.randn(3))),
    "dtypes": ("matmul", lambda f: f(torch.randn(3, 5), torch.randn(5, 3).double())),
    "not a tensor": ("matmul", lambda f: f([1.0], torch.randn(1))),
    "bmm rank": ("bmm", lambda f: f(torch.randn(3, 5), torch.randn(5, 3))),
    "bmm batch": ("bmm", lambda f: f(torch.randn(2, 3, 5), torch.randn(1, 5, 3))),
    "bmm sizes": ("bmm", lambda f: f(torch.randn(2, 3, 5), torch.randn(2, 4, 3))),
    "baddbmm input": ("baddbmm", lambda f: f(torch.randn(4), torch.randn(2, 3, 5), torch.randn(2, 5, 3))),
    "baddbmm rank": ("baddbmm", lambda f: f(torch.randn(4), torch.randn(3, 5), torch.randn(5, 4))),
    "baddbmm dtype": ("baddbmm", lambda f: f(torch.randn(3).double(), torch.randn(2, 3, 5), torch.randn(2, 5, 3))),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_raises_what_native_raises(kind):
    name, call = BAD[kind]
    with pytest.raises(Exception) as native:  # noqa: PT011 - native's type is the expectation
        call(getattr(torch, name))
    with pytest.raises(native.type):
        call(getattr(TF, name))


def test_error_names_argument_and_shapes():
    with pytest.raises(RuntimeError, match=r"input's last dimension \(5\).*\[3, 5\].*\[4, 3\]"):
        TF.matmul(torch.randn(3, 5), torch.randn(4, 3))

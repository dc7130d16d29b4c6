"""layer_norm against float64 math and against native. Hard inputs: test_norm_accuracy.py."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import DTYPES, assert_as_accurate, ops_called, references

# One lane, around each ISA's vector width, several vectors with a tail, and a width models use.
COLS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 100, 257, 768)
# None, one, around the four-row block of the backward kernel, and more than one chunk of partial sums at 768 columns.
ROWS = (0, 1, 3, 4, 5, 70)


def _run(function, x: Tensor, cols: int, parameters: list[Tensor | None], dy: Tensor) -> list[Tensor]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, *parameters)]
    y = function(leaves[0], (cols,), leaves[1], leaves[2])
    y.backward(dy.to(y.dtype))
    return [y.detach(), *[t.grad for t in leaves if t is not None]]


def _reference(x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return references.layer_norm(x, len(shape), weight, bias, 1e-5)


@pytest.mark.parametrize("affine", ["both", "weight", "bias", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", COLS)
def test_forward_and_backward(isa, dtype, cols, affine):
    for rows in ROWS:
        x, dy = torch.randn(2, rows, cols, dtype=dtype)
        weight = torch.randn(cols, dtype=dtype) if affine in ("both", "weight") else None
        bias = torch.randn(cols, dtype=dtype) if affine in ("both", "bias") else None
        ours = _run(TF.layer_norm, x, cols, [weight, bias], dy)
        native = _run(F.layer_norm, x, cols, [weight, bias], dy)
        wide = [None if t is None else t.double() for t in (weight, bias)]
        reference = _run(_reference, x.double(), cols, wide, dy.double())
        for name, a, b, c in zip(("y", "dx", "d1", "d2"), ours, native, reference, strict=False):
            if dtype == torch.float64:  # the reference is no more exact than either
                torch.testing.assert_close(a, c, msg=f"{name} {rows}x{cols}")
            else:
                assert_as_accurate(a, b, c, what=f"{name} {rows}x{cols}")


def test_own_kernels_do_the_work():
    x = torch.randn(4, 8, requires_grad=True)
    called = ops_called(lambda: TF.layer_norm(x, (8,)).sum().backward())
    assert {"tilewright::layer_norm_forward", "tilewright::layer_norm_backward"} <= called
    assert not any("native_layer_norm" in name for name in called)


def _strided_inputs() -> dict[str, Tensor]:
    base = torch.randn(6, 5, 40)
    return {
        "transposed": base.transpose(0, 1),
        "last dimension strided": base[..., ::2],
        "expanded": torch.randn(1, 1, 40).expand(6, 5, 40),
        "misaligned": torch.randn(6 * 5 * 40 + 1)[1:].view(6, 5, 40),
        "channels_last": torch.randn(2, 3, 4, 40).contiguous(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("kind", _strided_inputs().keys())
def test_strided_inputs(isa, kind):
    x = _strided_inputs()[kind]
    cols = x.shape[-1]
    ours, native = TF.layer_norm(x, (cols,)), F.layer_norm(x, (cols,))
    torch.testing.assert_close(ours, native)
    assert ours.stride() == native.stride()


def test_mixed_dtypes_like_native():
    x, w, b = torch.randn(4, 32, dtype=torch.bfloat16), torch.randn(32), torch.randn(32)
    assert_as_accurate(
        TF.layer_norm(x, (32,), w, b), F.layer_norm(x, (32,), w, b), references.layer_norm(x, 1, w, b, 1e-5)
    )


def test_same_bits_for_any_thread_count():
    x, w = torch.randn(500, 300, requires_grad=True), torch.randn(300, requires_grad=True)
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        y = TF.layer_norm(x, (300,), w)
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, w))])
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def _double_inputs() -> tuple[Tensor, Tensor, Tensor]:
    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    return make(3, 2, 5), make(2, 5), make(2, 5)


def test_gradcheck(isa):
    def function(x, w, b):
        return TF.layer_norm(x, (2, 5), w, b)

    assert torch.autograd.gradcheck(function, _double_inputs(), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, _double_inputs())


def test_opcheck():
    x, w, b = _double_inputs()
    torch.library.opcheck(torch.ops.tilewright.layer_norm.default, (x, (2, 5), w, b, 1e-5))
    x, w, b = x.detach(), w.detach(), b.detach()
    forward = torch.ops.tilewright.layer_norm_forward.default
    torch.library.opcheck(forward, (x, (2, 5), w, b, 1e-5))
    y, mean, rstd = forward(x, (2, 5), w, b, 1e-5)
    arguments = (torch.ones_like(y), x, (2, 5), mean, rstd, w, [True, True, True])
    torch.library.opcheck(torch.ops.tilewright.layer_norm_backward.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    def function(x, w, b):
        return TF.layer_norm(x, (2, 5), w, b)

    inputs = _double_inputs()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    y, expected = compiled(*inputs), function(*inputs)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    grads = [torch.autograd.grad(out.sin().sum(), inputs) for out in (y, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    dims=st.integers(1, 3),
    affine=st.sampled_from(["both", "weight", "bias", "none"]),
    low=st.sampled_from([None, torch.bfloat16, torch.float16]),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_like_native_for_any_arguments(shape, dims, affine, low, transposed, seed):
    torch.manual_seed(seed)
    x = torch.randn(shape).to(low or torch.float32)
    x = x.transpose(0, -1) if transposed else x
    normalized = tuple(x.shape[-min(dims, x.dim()) :])
    weight = torch.randn(normalized) if affine in ("both", "weight") else None
    bias = torch.randn(normalized) if affine in ("both", "bias") else None
    ours, native = TF.layer_norm(x, normalized, weight, bias), F.layer_norm(x, normalized, weight, bias)
    if x.numel() > 0:
        assert_as_accurate(ours, native, references.layer_norm(x, len(normalized), weight, bias, 1e-5))
    assert (ours.shape, ours.dtype, ours.stride()) == (native.shape, native.dtype, native.stride())


def test_export_keeps_the_op():
    class Layer(torch.nn.LayerNorm):
        def forward(self, x):
            return TF.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    layer, x = Layer(6), torch.randn(5, 6)
    program = torch.export.export(layer, (x,))
    assert any("tilewright.layer_norm" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_function_modes_and_inference_mode_keep_our_kernels():
    x = torch.randn(3, 6)
    with torch.device("cpu"), torch.inference_mode():
        called = ops_called(lambda: TF.layer_norm(x, (6,)))
    assert "tilewright::layer_norm_forward" in called


def test_rows_of_nearly_equal_values_keep_their_digits(isa):
    x, dy, weight = torch.randn(2000, 1) + 1e-3 * torch.randn(2000, 2), torch.randn(2000, 2), torch.randn(2)

    def gradient(function, *inputs):
        return _run(function, inputs[0], 2, [inputs[1], None], dy)[1]

    ours, native = gradient(TF.layer_norm, x, weight), gradient(F.layer_norm, x, weight)
    assert_as_accurate(ours, native, gradient(_reference, x.double(), weight.double()), factor=1.0)


def test_transforms():
    x, w, b = (t.detach() for t in _double_inputs())

    def ours(x):
        return TF.layer_norm(x, (2, 5), w, b).sin()

    def native(x):
        return F.layer_norm(x, (2, 5), w, b).sin()

    for transform in (torch.func.vmap, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(ours)(x), transform(native)(x))


BAD = {
    "shape does not end so": lambda f: f(torch.randn(3, 5), (4,)),
    "empty normalized_shape": lambda f: f(torch.randn(3, 5), ()),
    "rank too low": lambda f: f(torch.randn(5), (3, 5)),
    "weight shape": lambda f: f(torch.randn(3, 5), (5,), torch.randn(4)),
    "bias shape": lambda f: f(torch.randn(3, 5), (5,), None, torch.randn(5, 1)),
    "not a tensor": lambda f: f([1.0, 2.0], (2,)),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_raises_what_native_raises(kind):
    with pytest.raises(Exception) as native:  # noqa: PT011 - native's type is the expectation
        BAD[kind](F.layer_norm)
    with pytest.raises(native.type):
        BAD[kind](TF.layer_norm)

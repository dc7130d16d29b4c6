"""dropout_add, dropout_add_layer_norm and masked_scale against float64 math and the separate ops."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import DTYPES, assert_as_accurate, ops_called, philox, references

OPS = torch.ops.tilewright
P = 0.3
# Rows and columns: empty, one, around a vector and a group, odd sizes whose rows start inside a group, around the
# blocks of rows that stay in cache, and wider than a span of 2048 elements.
SHAPES = ((0, 8), (1, 1), (3, 1), (1, 5), (3, 33), (4, 16), (5, 257), (37, 100), (150, 257), (6, 2500))


def _next_mask(shape, p: float = P) -> Tensor:
    return philox.keep_mask(philox.drawn_seed(), p, torch.Size(shape).numel()).view(shape)


def _randn(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_(grad)


def _results(function, inputs: list[Tensor | None], grads: list[Tensor | None]) -> list[Tensor]:
    """Outputs, then the gradient of every input that is there."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    outputs = function(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    used = [(y, g.to(y.dtype)) for y, g in zip(outputs, grads, strict=True) if g is not None]
    wanted = [t for t in leaves if t is not None]
    found = torch.autograd.grad([y for y, _ in used], wanted, [g for _, g in used], allow_unused=True)
    return [*[y.detach() for y in outputs], *[g for g in found if g is not None]]


def _wide(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


def _compare(ours, native, reference, inputs, grads, what: str) -> None:
    expected = _results(reference, _wide(inputs), _wide(grads))
    results = _results(ours, inputs, grads), _results(native, inputs, grads), expected
    for i, (a, b, c) in enumerate(zip(*results, strict=True)):
        assert_as_accurate(a, b, c, what=f"{what} result {i}")


# --- dropout_add ---
def _add_given(mask: Tensor, p: float = P):
    def function(x: Tensor, residual: Tensor, bias: Tensor | None) -> Tensor:
        return residual + (x if bias is None else x + bias) * (mask.to(x.dtype) / (1 - p))

    return function


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_add(isa, dtype, bias):
    for rows, cols in SHAPES:
        inputs = [_randn(rows, cols, dtype=dtype), _randn(rows, cols, dtype=dtype)]
        inputs.append(_randn(cols, dtype=dtype) if bias else None)
        grads = [_randn(rows, cols, dtype=dtype)]
        given_mask = _add_given(_next_mask((rows, cols)))

        def ours(x, r, b):
            return TF.dropout_add(x, r, P, bias=b)

        _compare(ours, given_mask, given_mask, inputs, grads, f"{rows}x{cols}")


def test_dropout_add_runs_one_kernel():
    x, r, b = _randn(4, 8), _randn(4, 8), _randn(8)
    called = ops_called(lambda: TF.dropout_add(x, r, bias=b).sum().backward())
    assert {"tilewright::dropout_add_forward", "tilewright::dropout_add_backward"} <= called
    assert not any("bernoulli" in name or name == "aten::add" for name in called)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_add_without_a_mask(p, training):
    x, r, b = _randn(4, 8), _randn(4, 8), _randn(8)
    kept = x + b if p == 0 or not training else torch.zeros(4, 8)
    torch.testing.assert_close(TF.dropout_add(x, r, p, training, bias=b), r + kept)


@settings(deadline=None, max_examples=80)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), p=st.floats(0.01, 0.99))
def test_dropout_add_for_any_shapes(data, dtype, p):
    full = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4), label="shape")

    def shrink():
        return [1 if data.draw(st.booleans()) else n for n in full]

    x_shape, r_shape = (full, shrink()) if data.draw(st.booleans()) else (shrink(), full)
    x, r = torch.randn(x_shape).to(dtype), torch.randn(r_shape).to(dtype)
    if data.draw(st.booleans(), label="transposed"):
        x, r = x.mT.contiguous().mT if x.dim() > 1 else x, r
    bias = torch.randn(full[-1:]).to(dtype) if data.draw(st.booleans(), label="bias") else None
    state = torch.get_rng_state()
    ours = TF.dropout_add(x, r, p, bias=bias)
    torch.set_rng_state(state)
    separate = r + TF.dropout(x if bias is None else x + bias, p)
    assert ours.stride() == separate.stride() or bias is not None
    scale = 4 * torch.finfo(dtype).eps * (1 + 6 / (1 - p))
    torch.testing.assert_close(ours, separate, rtol=scale, atol=scale)


def test_dropout_add_keeps_channels_last():
    x, r = (torch.randn(2, 5, 6, 7).contiguous(memory_format=torch.channels_last) for _ in range(2))
    mask = _next_mask(x.shape)
    y = TF.dropout_add(x, r, P)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, _add_given(mask)(x, r, None))


def test_dropout_add_promotes_as_the_separate_ops():
    x, r = torch.randn(4, 8, dtype=torch.bfloat16), torch.randn(4, 8)
    torch.manual_seed(1)
    ours = TF.dropout_add(x, r)
    torch.manual_seed(1)
    assert torch.equal(ours, r + TF.dropout(x))


# --- dropout_add_layer_norm ---
def _norm_given(mask: Tensor | None, cols: int, prenorm: bool, norm, p: float = P):
    def function(x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None):
        z = residual + (x if mask is None else x * (mask.to(x.dtype) / (1 - p)))
        y = norm(z, cols, weight, bias)
        return (y, z) if prenorm else y

    return function


def _native_norm(z: Tensor, cols: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return F.layer_norm(z, (cols,), weight, bias)


def _reference_norm(z: Tensor, cols: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return references.layer_norm(z, 1, weight, bias, 1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("affine", ["both", "weight", "bias", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_add_layer_norm(isa, dtype, affine, training):
    for rows, cols in SHAPES:
        if cols == 1:  # the norm of one element is 0 times its rounding
            continue
        parameters = [
            _randn(cols, dtype=dtype) if affine in ("both", "weight") else None,
            _randn(cols, dtype=dtype) if affine in ("both", "bias") else None,
        ]
        inputs = [_randn(rows, cols, dtype=dtype), _randn(rows, cols, dtype=dtype), *parameters]
        grads = [_randn(rows, cols, dtype=dtype), _randn(rows, cols, dtype=dtype)]
        mask = _next_mask((rows, cols)) if training else None

        def ours(x, r, w, b):
            return TF.dropout_add_layer_norm(x, r, (x.shape[-1],), w, b, 1e-5, P, training, prenorm=True)

        given_mask = [_norm_given(mask, cols, True, norm) for norm in (_native_norm, _reference_norm)]
        _compare(ours, *given_mask, inputs, grads, f"{rows}x{cols}")


@pytest.mark.parametrize("used", ["normed", "sum", "no prenorm"])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_one_output(used, training):
    inputs = [_randn(6, 40), _randn(6, 40), _randn(40), _randn(40)]
    prenorm = used != "no prenorm"
    grads = [None if used == "sum" else _randn(6, 40)]
    if prenorm:
        grads.append(_randn(6, 40) if used == "sum" else None)
    mask = _next_mask((6, 40)) if training else None

    def ours(x, r, w, b):
        return TF.dropout_add_layer_norm(x, r, (40,), w, b, p=P, training=training, prenorm=prenorm)

    given_mask = [_norm_given(mask, 40, prenorm, norm) for norm in (_native_norm, _reference_norm)]
    _compare(ours, *given_mask, inputs, grads, used)


@pytest.mark.parametrize("frozen", range(4))
@pytest.mark.parametrize("training", [False, True])
def test_only_wanted_gradients(frozen, training):
    inputs = [_randn(6, 40), _randn(6, 40), _randn(40), _randn(40)]
    grad = torch.randn(6, 40)
    mask = _next_mask((6, 40)) if training else None
    expected_function = _norm_given(mask, 40, False, _native_norm)
    ours = TF.dropout_add_layer_norm(
        *[t.detach() if i == frozen else t for i, t in enumerate(inputs[:2])],
        (40,),
        *[t.detach() if i + 2 == frozen else t for i, t in enumerate(inputs[2:])],
        p=P,
        training=training,
    )
    wanted = [t for i, t in enumerate(inputs) if i != frozen]
    expected = torch.autograd.grad(expected_function(*inputs), wanted, grad)
    torch.testing.assert_close(torch.autograd.grad(ours, wanted, grad), expected)


def test_inference_equals_training_mode_graph():
    inputs = [torch.randn(50, 70), torch.randn(50, 70)]
    results = []
    for grad in (False, True):
        torch.manual_seed(3)
        x = inputs[0].clone().requires_grad_(grad)
        results.append(TF.dropout_add_layer_norm(x, inputs[1], (70,), p=P).detach())
    assert torch.equal(*results)


def test_layer_norm_fusion_runs_one_kernel():
    x, r = _randn(4, 8), _randn(4, 8)
    called = ops_called(lambda: TF.dropout_add_layer_norm(x, r, (8,), p=0.5).sum().backward())
    assert {"tilewright::dropout_add_layer_norm_forward", "tilewright::dropout_add_layer_norm_backward"} <= called
    assert not any(
        name in called for name in ("tilewright::layer_norm_forward", "aten::add", "aten::native_layer_norm")
    )


@pytest.mark.parametrize("p", [0.4, 1.0])
def test_layer_norm_fusion_of_other_shapes(p):
    # Broadcasting, strides and p = 1 go through the separate ops and mean the same.
    for x, r in ((torch.randn(3, 1, 8), torch.randn(4, 8)), (torch.randn(8, 5).t(), torch.randn(5, 16)[:, ::2])):
        torch.manual_seed(2)
        y, z = TF.dropout_add_layer_norm(x, r, (8,), p=p, prenorm=True)
        torch.manual_seed(2)
        expected = r + TF.dropout(x, p)
        torch.testing.assert_close(z, expected)
        torch.testing.assert_close(y, F.layer_norm(expected, (8,)))


# --- masked_scale ---
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_scale(isa, dtype):
    for size in (0, 1, 3, 8, 17, 64, 1001):
        x, mask = _randn(2, size, dtype=dtype), torch.rand(2, size) > 0.4

        def plain(x, mask=mask):
            return x * mask * 1.7

        _compare(
            lambda x, mask=mask: TF.masked_scale(x, mask, 1.7), plain, plain, [x], [torch.randn(2, size)], f"{size}"
        )


@settings(deadline=None, max_examples=80)
@given(data=st.data(), dtype=st.sampled_from([*DTYPES, torch.int64]), mask_dtype=st.sampled_from([torch.bool, *DTYPES]))
def test_masked_scale_is_the_expression(data, dtype, mask_dtype):
    full = data.draw(st.lists(st.integers(0, 5), max_size=4), label="shape")

    def shape():
        return [1 if data.draw(st.booleans()) else n for n in full]

    x = (torch.randn(shape()) * 4).to(dtype)
    mask = (torch.rand(shape()) > 0.5).to(mask_dtype)
    scale = data.draw(st.sampled_from([0.0, 1.25, -3.0, float("inf"), float("nan")]), label="scale")
    expected = x * mask * scale
    ours = TF.masked_scale(x, mask, scale)
    eps = torch.finfo(expected.dtype).eps
    torch.testing.assert_close(ours, expected, rtol=2 * eps, atol=0, equal_nan=True)


def test_masked_scale_gradients_of_both():
    x, mask = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.rand(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, m: TF.masked_scale(x, m, 1.5), (x, mask.requires_grad_()))
    keep = torch.rand(2, 3, 4) > 0.5
    assert torch.autograd.gradcheck(lambda x: TF.masked_scale(x, keep, 1.5), (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: TF.masked_scale(x, keep, 1.5), (x,))
    x = x.detach()
    batched = torch.func.vmap(lambda x, k: TF.masked_scale(x, k, 1.5), in_dims=(None, 0))(x, keep)
    torch.testing.assert_close(batched, x * keep * 1.5)


@pytest.mark.parametrize("kind", ["transposed", "channels_last", "expanded", "misaligned"])
def test_masked_scale_strides(isa, kind):
    x = {
        "transposed": torch.randn(5, 6, 7, 8).transpose(1, 3),
        "channels_last": torch.randn(5, 8, 7, 6).contiguous(memory_format=torch.channels_last),
        "expanded": torch.randn(1, 8, 1, 6).expand(5, 8, 7, 6),
        "misaligned": torch.randn(5 * 8 * 7 * 6 + 1)[1:].view(5, 8, 7, 6),
    }[kind]
    mask = torch.rand(5, 8, 7, 6) > 0.5
    y = TF.masked_scale(x, mask, 2.0)
    assert torch.equal(y, x * mask * 2.0)
    assert y.stride() == (x * torch.empty_like(x)).stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bias_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_raw_op_takes_a_bias_of_another_dtype(dtype, bias_dtype):
    x, bias, seed = torch.randn(3, 40, dtype=dtype), torch.randn(40, dtype=bias_dtype), torch.tensor([1])
    y = torch.ops.tilewright.dropout_add_forward(x, torch.zeros_like(x), bias, seed, 0.0)
    torch.testing.assert_close(y, x + bias)

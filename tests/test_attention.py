"""scaled_dot_product_attention against float64 math and against native: numbers, shapes, layouts, drawn cases."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tilewright.functional import scaled_dot_product_attention
from tilewright.testing import DTYPES, assert_as_accurate, ops_called, references

from .attention_cases import MASKS, SHAPES, check, inputs_of, mask_of, native_sdpa, run, sdpa


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(isa, shape, dtype, kind):
    check(inputs_of(shape, dtype), mask_of(kind, shape, dtype), is_causal=kind == "causal")


@pytest.mark.parametrize("causal", [False, True])
def test_several_blocks_and_chunks(isa, causal):
    check(inputs_of((1, 2, 2, 700, 900, 32, 32), torch.float32), None, is_causal=causal)


@pytest.mark.parametrize("scale", [0.0, -2.0, 0.3, 1])
def test_scale(scale):
    check(inputs_of((2, 2, 2, 9, 12, 16, 16), torch.float32), None, scale=scale)


def test_own_kernels_do_the_work():
    q, k, v = (t.requires_grad_() for t in inputs_of((2, 2, 2, 9, 12, 16, 16), torch.float32))
    called = ops_called(lambda: sdpa(q, k, v).sum().backward())
    assert {"tilewright::attention_forward", "tilewright::attention_backward"} <= called
    assert not any("flash" in name or "bmm" in name for name in called)


# --- shapes and layouts ----------------------------------------------------------------------------------------------
BROADCAST = {
    "2-D": ((5, 8), (7, 8), (7, 6)),
    "3-D": ((3, 5, 8), (3, 7, 8), (3, 7, 8)),
    "5-D": ((2, 2, 3, 5, 8), (2, 2, 3, 7, 8), (2, 2, 3, 7, 8)),
    "one batch of keys": ((2, 3, 5, 8), (1, 3, 7, 8), (1, 3, 7, 8)),
    "one batch of queries": ((1, 3, 5, 8), (4, 3, 7, 8), (4, 3, 7, 8)),
    "one head of keys": ((2, 4, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8)),
    "one head of values": ((2, 4, 5, 8), (2, 4, 7, 8), (2, 1, 7, 8)),
    "lower rank keys": ((2, 3, 5, 8), (7, 8), (7, 8)),
    "lower rank query": ((5, 8), (2, 3, 7, 8), (3, 7, 8)),
}


@pytest.mark.parametrize("kind", BROADCAST)
def test_ranks_and_broadcasting(kind):
    inputs = [torch.randn(shape) for shape in BROADCAST[kind]]
    grad = torch.randn(native_sdpa(*inputs).shape)
    for ours, native in zip(run(sdpa, inputs, None, grad), run(native_sdpa, inputs, None, grad), strict=True):
        torch.testing.assert_close(ours, native)
        assert ours.shape == native.shape


@pytest.mark.parametrize("heads", [(6, 3, 3), (6, 1, 1), (6, 2, 3)])
def test_grouped_heads(heads):
    shapes = [(2, heads[0], 10, 8), (2, heads[1], 12, 8), (2, heads[2], 12, 8)]
    inputs, grad = [torch.randn(s) for s in shapes], torch.randn(2, 6, 10, 8)
    for ours, native in zip(
        run(sdpa, inputs, None, grad, enable_gqa=True),
        run(native_sdpa, inputs, None, grad, enable_gqa=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, native)


EMPTY = {
    "no batch": ((0, 3, 5, 8), (0, 3, 7, 8)),
    "no heads": ((2, 0, 5, 8), (2, 0, 7, 8)),
    "no queries": ((2, 3, 0, 8), (2, 3, 7, 8)),
    "no keys": ((2, 3, 5, 8), (2, 3, 0, 8)),
    "no head size": ((2, 3, 5, 0), (2, 3, 7, 0)),
    "no keys, other heads": ((2, 1, 5, 8), (2, 3, 0, 8)),
    "no queries, other batch": ((1, 3, 0, 8), (4, 3, 7, 8)),
    "2-D, no keys": ((5, 8), (0, 8)),
}


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"dropout_p": 0.5}, {"learned": True}], ids=str)
@pytest.mark.parametrize("kind", EMPTY)
def test_empty(kind, options):
    """Native's zeros, gradients and strides, and as many numbers drawn."""
    query, key = EMPTY[kind]
    inputs = [torch.randn(t).requires_grad_() for t in (query, key, key)]
    options = dict(options)
    if options.pop("learned", False):
        options["attn_mask"] = torch.randn(query[-2], key[-2], requires_grad=True)
    leaves, results = [*inputs, *(t for t in options.values() if isinstance(t, Tensor))], []
    for function in (sdpa, native_sdpa):
        torch.manual_seed(1)
        y = function(*inputs, **options)
        grads = torch.autograd.grad(y.sum(), leaves, allow_unused=True)
        results.append((y.shape, y.stride(), y.tolist(), [None if g is None else g.tolist() for g in grads]))
        results[-1] += (torch.get_rng_state().tolist(),)
    assert results[0] == results[1]


def test_no_head_size_attends_to_all_keys_alike():
    q, k, v = torch.randn(2, 5, 0), torch.randn(2, 7, 0), torch.randn(2, 7, 3)
    torch.testing.assert_close(sdpa(q, k, v), native_sdpa(q, k, v))
    torch.testing.assert_close(sdpa(q, k, v), v.mean(1, keepdim=True).expand(2, 5, 3))


def _layouts() -> dict[str, list[Tensor]]:
    fused = torch.randn(2, 19, 3, 4, 16)
    return {
        "contiguous": [torch.randn(2, 4, 19, 16) for _ in range(3)],
        "head last": [torch.randn(2, 19, 4, 16).transpose(1, 2) for _ in range(3)],
        "fused qkv": [fused[:, :, i].transpose(1, 2) for i in range(3)],
        "sequence first": [torch.randn(19, 2, 4, 16).permute(1, 2, 0, 3) for _ in range(3)],
        "last dimension strided": [torch.randn(2, 4, 16, 19).transpose(2, 3) for _ in range(3)],
        "every other element": [torch.randn(2, 4, 19, 32)[..., ::2] for _ in range(3)],
        "expanded": [torch.randn(1, 1, 19, 16).expand(2, 4, 19, 16) for _ in range(3)],
        "misaligned": [torch.randn(2 * 4 * 19 * 16 + 1)[1:].view(2, 4, 19, 16) for _ in range(3)],
        "other layouts for keys": [
            torch.randn(2, 4, 19, 16),
            torch.randn(2, 19, 4, 16).transpose(1, 2),
            torch.randn(2, 4, 16, 19).transpose(2, 3),
        ],
        "3-D transposed": [torch.randn(19, 4, 16).transpose(0, 1) for _ in range(3)],
    }


@pytest.mark.parametrize("kind", _layouts())
def test_layouts(isa, kind):
    inputs = _layouts()[kind]
    ours, native = sdpa(*inputs), native_sdpa(*inputs)
    assert_as_accurate(ours, native, references.attention(*inputs))
    assert ours.stride() == native.stride()
    leaves = [t.detach().requires_grad_() for t in inputs]
    grads = [torch.autograd.grad(f(*leaves).sin().sum(), leaves) for f in (sdpa, native_sdpa)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("options", [{"dropout_p": 0.5}, {"learned": True}, {"size": 9}], ids=str)
def test_output_is_contiguous_where_native_gives_that(options):
    q, k = torch.randn(2, 5, 3, 8).transpose(1, 2), torch.randn(2, 3, 7, 8)
    v = torch.randn(2, 3, 7, options.get("size", 8))
    mask = torch.randn(5, 7, requires_grad=True) if "learned" in options else None
    p = options.get("dropout_p", 0.0)
    assert sdpa(q, k, v, mask, p).stride() == native_sdpa(q, k, v, mask, p).stride()


SINGLE = {
    "2-D": ((5, 1), (1, 5)),
    "3-D": ((1, 2, 8), (8, 8, 1)),
    "one head": ((3, 1, 5, 2), (10, 30, 2, 1)),
    "5-D": ((1, 3, 1, 5, 2), (7, 10, 3, 2, 1)),
    "head size 1": ((1, 1, 3, 1), (1, 3, 1, 3)),
}


@pytest.mark.parametrize("mask", [None, "one row", "one value", "three dimensions"])
@pytest.mark.parametrize("kind", SINGLE)
def test_strides_of_dimensions_of_size_1(kind, mask):
    shape, strides = SINGLE[kind]
    q = torch.randn(100).as_strided(shape, strides)
    k = torch.randn(*shape[:-2], 4, shape[-1])
    masks = {"one row": torch.randn(1, 4), "one value": torch.randn(1, 1), "three dimensions": torch.randn(1, 1, 4)}
    at = masks.get(mask) if mask != "three dimensions" or len(shape) > 2 else None
    ours, native = sdpa(q, k, k, at), native_sdpa(q, k, k, at)
    torch.testing.assert_close(ours, native)
    assert ours.stride() == native.stride()
    wide = torch.randn(*shape[:-3], 2, 4, shape[-1]) if len(shape) > 2 else k  # query's head is broadcast
    assert sdpa(q, wide, wide, at).stride() == native_sdpa(q, wide, wide, at).stride()


def test_masks_are_read_through_their_strides():
    q, k, v = inputs_of((2, 3, 3, 21, 40, 16, 16), torch.float32)
    masks = {
        "transposed": torch.randn(40, 21).t(),
        "sliced": torch.randn(21, 90)[:, 3:83:2],
        "one value": torch.randn(1, 1),
        "1-D of keys, 3-D call": torch.randn(40),
        "rows": torch.randn(2, 1, 21, 1),
        "offset bool": (torch.rand(21, 47) > 0.5)[:, 7:],
        "expanded bool": (torch.rand(1, 40) > 0.5).expand(2, 3, 21, 40),
    }
    for name, mask in masks.items():
        inputs = [t[0] for t in (q, k, v)] if mask.dim() == 1 else [q, k, v]
        assert_as_accurate(
            sdpa(*inputs, mask), native_sdpa(*inputs, mask), references.attention(*inputs, mask), what=name
        )


def test_double_query_takes_a_float32_mask():
    inputs, mask = inputs_of((1, 2, 2, 9, 11, 8, 8), torch.float64), torch.randn(9, 11)
    assert_as_accurate(sdpa(*inputs, mask), native_sdpa(*inputs, mask), references.attention(*inputs, mask))


@pytest.mark.parametrize(
    "shape", [(), (1, 1), (1, 1, 1, 1), (11,), (9, 1), (2, 1, 1, 11), (1, 4, 9, 11), (4, 1, 1), (2, 4, 9, 11)], ids=str
)
def test_mask_gradient_is_summed_over_what_it_is_broadcast_over(isa, shape):
    inputs, mask = inputs_of((2, 4, 2, 9, 11, 8, 8), torch.float64), torch.randn(shape, dtype=torch.float64)
    if len(shape) == 1:
        inputs = [t[0] for t in inputs]
    grad = torch.randn(*inputs[0].shape[:-1], 8, dtype=torch.float64)
    ours = run(sdpa, inputs, mask, grad, enable_gqa=True)
    reference = run(references.attention, inputs, mask, grad)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b)


# --- numbers that are not ordinary -----------------------------------------------------------------------------------
def test_rows_that_attend_to_nothing_are_zero_with_zero_gradients(isa):
    for mask in (torch.zeros(40, 70, dtype=torch.bool), torch.full((40, 70), -torch.inf)):
        mask = mask.clone()
        mask[3] = True if mask.dtype == torch.bool else 0.0
        q, k, v = (t.requires_grad_() for t in inputs_of((2, 2, 2, 40, 70, 16, 16), torch.float32))
        output = sdpa(q, k, v, mask)
        dq, dk, dv = torch.autograd.grad(output.sin().sum(), (q, k, v))
        others = torch.arange(40) != 3
        assert output[:, :, others].abs().max() == 0
        assert dq[:, :, others].abs().max() == 0
        torch.testing.assert_close(output[:, :, 3], native_sdpa(q, k, v)[:, :, 3])
        assert dk.isfinite().all()
        assert dv.isfinite().all()


def test_lowest_finite_mask_keeps_its_meaning(isa):
    q, k, v = inputs_of((1, 2, 2, 6, 40, 16, 16), torch.float32)
    mask = torch.zeros(6, 40)
    mask[:, 20:] = torch.finfo(torch.float32).min
    mask[2] = torch.finfo(torch.float32).min  # all keys weigh the same
    torch.testing.assert_close(sdpa(q, k, v, mask), native_sdpa(q, k, v, mask))
    torch.testing.assert_close(sdpa(q, k, v, mask)[:, :, 2], v.mean(2))


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_logits(isa, size):
    q, k, v = inputs_of((1, 2, 2, 40, 80, 16, 16), torch.float32)
    mask = torch.randn(40, 80) * size
    assert_as_accurate(sdpa(q, k, v, mask), native_sdpa(q, k, v, mask), references.attention(q, k, v, mask))
    grad, large = torch.randn(1, 2, 40, 16), [q * size / 4, k, v]
    ours = run(sdpa, large, None, grad)
    reference = run(references.attention, large, None, grad.double())
    assert_as_accurate(ours[0], native_sdpa(*large), reference[0])
    for a, b in zip(ours[1:], reference[1:], strict=True):
        # A saved logsumexp near `size` is rounded to size * eps, and so is every weight made from it.
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=4 * size * 2**-23 * b.abs().max().item())


@pytest.mark.parametrize("kind", ["none", "causal", "bool"])
@pytest.mark.parametrize("scale", [1e9, 1e12, 1e30])
def test_logits_beyond_the_exponentials_range(isa, scale, kind):
    """A logit's own rounding error is more than an exponential can take; the largest still weighs 1, as natively."""
    shape = (2, 3, 3, 17, 33, 16, 16)
    for queries in (17, 2):  # the streamed kernel too
        inputs = [t[..., : queries if i == 0 else 33, :] for i, t in enumerate(inputs_of(shape, torch.float32))]
        mask = None if kind != "bool" else torch.rand(queries, 33) > 0.3
        leaves = [t.requires_grad_() for t in inputs]
        y = sdpa(*leaves, mask, is_causal=kind == "causal", scale=scale)
        wide = [t.detach().double().requires_grad_() for t in inputs]
        expected = references.attention(*wide, mask, is_causal=kind == "causal", scale=scale)
        torch.testing.assert_close(y.double(), expected)
        # The logsumexp saved is rounded, so a weight made again may be 0; above 1, or infinite, it may not be.
        grad_value = torch.autograd.grad(y.sum(), leaves[2])[0]
        assert grad_value.min() >= 0
        assert grad_value.max() <= queries


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("where", ["query", "key", "value", "mask"])
def test_not_finite_like_native(isa, where, value):
    q, k, v = inputs_of((1, 2, 2, 6, 20, 16, 16), torch.float32)
    mask = torch.randn(6, 20)
    {"query": q[0, 0, 2], "key": k[0, 0, 3], "value": v[0, 0, 3], "mask": mask[4]}[where][5] = value
    torch.testing.assert_close(sdpa(q, k, v, mask), native_sdpa(q, k, v, mask), equal_nan=True)
    torch.testing.assert_close(sdpa(q[:, :, :2], k, v), native_sdpa(q[:, :, :2], k, v), equal_nan=True)


@st.composite
def _cases(draw):
    size = st.integers(1, 40)
    key_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = (draw(st.integers(1, 2)), key_heads * group, key_heads, draw(size), draw(size), draw(size), draw(size))
    return shape, draw(st.sampled_from(MASKS)), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**31))


@settings(max_examples=60, deadline=None)
@given(_cases())
def test_drawn_cases(case):
    shape, kind, dtype, seed = case
    torch.manual_seed(seed)
    # Drawn tensors may have one element: how small native's error on them happens to be is luck, so sizes set the bar.
    check(inputs_of(shape, dtype), mask_of(kind, shape, dtype), by_size=True, is_causal=kind == "causal")


def test_bfloat16_gradients_where_native_computes_in_float32(isa):
    """Values of another size: delta must not carry the output's rounding, which sharp logits would multiply."""
    q, k, v = 9 * torch.randn(1, 4, 64, 64), 3 * torch.randn(1, 4, 256, 64), 3 * torch.randn(1, 4, 256, 32)
    dy = torch.randn(1, 4, 64, 32).bfloat16()

    def gradients(function, dtype):
        tensors = [t.bfloat16().to(dtype).requires_grad_() for t in (q, k, v)]
        return torch.autograd.grad(function(*tensors), tensors, dy.to(dtype))

    native = torch.nn.functional.scaled_dot_product_attention
    exact, expected = gradients(native, torch.float64), gradients(native, torch.bfloat16)
    ours = gradients(scaled_dot_product_attention, torch.bfloat16)
    for name, ours_, native_, reference in zip("qkv", ours, expected, exact, strict=True):
        assert_as_accurate(ours_, native_, reference, what=f"d{name}")

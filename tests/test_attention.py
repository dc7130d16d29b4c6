"""scaled_dot_product_attention against float64 math and against native."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import DTYPES, assert_as_accurate, ops_called, references

sdpa, native_sdpa = TF.scaled_dot_product_attention, F.scaled_dot_product_attention

# (batch, heads, key heads, Sq, Sk, D, Dv): one of each; a window; tiles with tails; unlike lengths and sizes; grouped
# heads; few queries (streamed) over one and several chunks; more than one block of queries and keys; wide heads.
SHAPES = (
    (1, 1, 1, 1, 1, 1, 1),
    (3, 2, 2, 49, 49, 32, 32),
    (2, 3, 3, 15, 33, 8, 8),
    (2, 4, 2, 37, 70, 17, 5),
    (1, 4, 1, 1, 1100, 24, 40),
    (2, 6, 3, 4, 65, 64, 64),
    (1, 2, 1, 150, 300, 64, 48),
    (1, 1, 1, 20, 40, 300, 257),
)
MASKS = ("none", "causal", "bool", "bool keys", "float", "float rows", "float32", "hidden rows", "window")


def _mask(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    batch, heads, _, queries, keys, _, _ = shape
    if kind == "bool":
        return torch.rand(batch, 1, queries, keys) > 0.3
    if kind == "bool keys":
        return (torch.arange(keys) < max(1, keys * 2 // 3)).expand(batch, 1, 1, keys)
    if kind == "float":
        return torch.randn(1, heads, queries, keys, dtype=dtype)
    if kind == "float rows":
        return torch.randn(heads, queries, 1, dtype=dtype)
    if kind == "float32":
        return torch.randn(queries, keys)
    if kind == "hidden rows":
        mask = torch.zeros(queries, keys, dtype=dtype)
        mask[::2] = -torch.inf
        mask[:, keys // 2 :] = -torch.inf
        return mask
    if kind == "window":
        return torch.ones(queries, keys, dtype=torch.bool).tril(2).triu(-3)
    return None


def _inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    batch, heads, key_heads, queries, keys, size, value_size = shape
    make = lambda *sizes: torch.randn(*sizes, dtype=dtype)  # noqa: E731
    return [
        make(batch, heads, queries, size),
        make(batch, key_heads, keys, size),
        make(batch, key_heads, keys, value_size),
    ]


def _run(function, inputs: list[Tensor], mask: Tensor | None, grad: Tensor, **options) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    if mask is not None and mask.is_floating_point():
        mask = mask.detach().clone().requires_grad_()
        leaves.append(mask)
    output = function(*leaves[:3], mask, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def _check(inputs: list[Tensor], mask: Tensor | None, *, by_size: bool = False, **options) -> None:
    grouped = {"enable_gqa": inputs[0].shape[-3] != inputs[1].shape[-3]}
    grad = torch.randn(*inputs[0].shape[:-1], inputs[2].shape[-1], dtype=inputs[0].dtype)
    ours = _run(sdpa, inputs, mask, grad, **options, **grouped)
    native = _run(native_sdpa, inputs, mask, grad, **options, **grouped)
    reference = _run(references.attention, inputs, mask, grad.double(), **options)
    largest = max(c.abs().max().item() for c in reference)
    for name, a, b, c in zip(("output", "dq", "dk", "dv", "dmask"), ours, native, reference, strict=False):
        # The reference rounds in float64 too, in native's own order; and a gradient that is 0 by cancellation (one key,
        # a mask that all keys share) has no size of its own to hold its error against.
        if by_size or a.dtype == torch.float64 or c.abs().max().item() < 1e-12 * largest:
            eps = max(torch.finfo(a.dtype).eps, torch.finfo(inputs[0].dtype).eps)
            torch.testing.assert_close(a.double(), c.double(), rtol=0, atol=32 * eps * largest, msg=name)
        else:
            assert_as_accurate(a, b, c, what=name)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(isa, shape, dtype, kind):
    _check(_inputs(shape, dtype), _mask(kind, shape, dtype), is_causal=kind == "causal")


@pytest.mark.parametrize("causal", [False, True])
def test_several_blocks_and_chunks(isa, causal):
    _check(_inputs((1, 2, 2, 700, 900, 32, 32), torch.float32), None, is_causal=causal)


@pytest.mark.parametrize("scale", [0.0, -2.0, 0.3, 1])
def test_scale(scale):
    _check(_inputs((2, 2, 2, 9, 12, 16, 16), torch.float32), None, scale=scale)


def test_own_kernels_do_the_work():
    q, k, v = (t.requires_grad_() for t in _inputs((2, 2, 2, 9, 12, 16, 16), torch.float32))
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
    for ours, native in zip(_run(sdpa, inputs, None, grad), _run(native_sdpa, inputs, None, grad), strict=True):
        torch.testing.assert_close(ours, native)
        assert ours.shape == native.shape


@pytest.mark.parametrize("heads", [(6, 3, 3), (6, 1, 1), (6, 2, 3)])
def test_grouped_heads(heads):
    shapes = [(2, heads[0], 10, 8), (2, heads[1], 12, 8), (2, heads[2], 12, 8)]
    inputs, grad = [torch.randn(s) for s in shapes], torch.randn(2, 6, 10, 8)
    for ours, native in zip(
        _run(sdpa, inputs, None, grad, enable_gqa=True),
        _run(native_sdpa, inputs, None, grad, enable_gqa=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, native)


EMPTY = {
    "no batch": ((0, 3, 5, 8), (0, 3, 7, 8)),
    "no heads": ((2, 0, 5, 8), (2, 0, 7, 8)),
    "no queries": ((2, 3, 0, 8), (2, 3, 7, 8)),
    "no keys": ((2, 3, 5, 8), (2, 3, 0, 8)),
    "no head size": ((2, 3, 5, 0), (2, 3, 7, 0)),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_empty(kind):
    query, key = EMPTY[kind]
    inputs = [torch.randn(query), torch.randn(key), torch.randn(key)]
    grad = torch.randn(query)
    for ours, native in zip(_run(sdpa, inputs, None, grad), _run(native_sdpa, inputs, None, grad), strict=True):
        torch.testing.assert_close(ours, native)


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


def test_masks_are_read_through_their_strides():
    q, k, v = _inputs((2, 3, 3, 21, 40, 16, 16), torch.float32)
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
    inputs, mask = _inputs((1, 2, 2, 9, 11, 8, 8), torch.float64), torch.randn(9, 11)
    assert_as_accurate(sdpa(*inputs, mask), native_sdpa(*inputs, mask), references.attention(*inputs, mask))


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 1, 1, 1), (11,), (9, 1), (2, 1, 1, 11), (1, 4, 9, 11), (4, 1, 1), (2, 4, 9, 11)], ids=str
)
def test_mask_gradient_is_summed_over_what_it_is_broadcast_over(isa, shape):
    inputs, mask = _inputs((2, 4, 2, 9, 11, 8, 8), torch.float64), torch.randn(shape, dtype=torch.float64)
    if len(shape) == 1:
        inputs = [t[0] for t in inputs]
    grad = torch.randn(*inputs[0].shape[:-1], 8, dtype=torch.float64)
    ours = _run(sdpa, inputs, mask, grad, enable_gqa=True)
    reference = _run(references.attention, inputs, mask, grad)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b)


# --- numbers that are not ordinary -----------------------------------------------------------------------------------
def test_rows_that_attend_to_nothing_are_zero_with_zero_gradients(isa):
    for mask in (torch.zeros(40, 70, dtype=torch.bool), torch.full((40, 70), -torch.inf)):
        mask = mask.clone()
        mask[3] = True if mask.dtype == torch.bool else 0.0
        q, k, v = (t.requires_grad_() for t in _inputs((2, 2, 2, 40, 70, 16, 16), torch.float32))
        output = sdpa(q, k, v, mask)
        dq, dk, dv = torch.autograd.grad(output.sin().sum(), (q, k, v))
        others = torch.arange(40) != 3
        assert output[:, :, others].abs().max() == 0
        assert dq[:, :, others].abs().max() == 0
        torch.testing.assert_close(output[:, :, 3], native_sdpa(q, k, v)[:, :, 3])
        assert dk.isfinite().all()
        assert dv.isfinite().all()


def test_lowest_finite_mask_keeps_its_meaning(isa):
    q, k, v = _inputs((1, 2, 2, 6, 40, 16, 16), torch.float32)
    mask = torch.zeros(6, 40)
    mask[:, 20:] = torch.finfo(torch.float32).min
    mask[2] = torch.finfo(torch.float32).min  # all keys weigh the same
    torch.testing.assert_close(sdpa(q, k, v, mask), native_sdpa(q, k, v, mask))
    torch.testing.assert_close(sdpa(q, k, v, mask)[:, :, 2], v.mean(2))


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_logits(isa, size):
    q, k, v = _inputs((1, 2, 2, 40, 80, 16, 16), torch.float32)
    mask = torch.randn(40, 80) * size
    assert_as_accurate(sdpa(q, k, v, mask), native_sdpa(q, k, v, mask), references.attention(q, k, v, mask))
    grad, large = torch.randn(1, 2, 40, 16), [q * size / 4, k, v]
    ours = _run(sdpa, large, None, grad)
    reference = _run(references.attention, large, None, grad.double())
    assert_as_accurate(ours[0], native_sdpa(*large), reference[0])
    for a, b in zip(ours[1:], reference[1:], strict=True):
        # A saved logsumexp near `size` is rounded to size * eps, and so is every weight made from it.
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=4 * size * 2**-23 * b.abs().max().item())


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("where", ["query", "key", "value", "mask"])
def test_not_finite_like_native(isa, where, value):
    q, k, v = _inputs((1, 2, 2, 6, 20, 16, 16), torch.float32)
    mask = torch.randn(6, 20)
    {"query": q[0, 0, 2], "key": k[0, 0, 3], "value": v[0, 0, 3], "mask": mask[4]}[where][5] = value
    torch.testing.assert_close(sdpa(q, k, v, mask), native_sdpa(q, k, v, mask), equal_nan=True)
    torch.testing.assert_close(sdpa(q[:, :, :2], k, v), native_sdpa(q[:, :, :2], k, v), equal_nan=True)


# --- dropout ---------------------------------------------------------------------------------------------------------
def _keep_mask(shape: tuple[int, ...], p: float, seed: int) -> Tensor:
    """The bits that the next call drops, from the op that all dropout shares."""
    torch.manual_seed(seed)
    drawn = torch.ops.tilewright.dropout_seed(torch.empty(1))
    return torch.ops.tilewright.dropout_mask(torch.empty(shape), drawn, p)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [*SHAPES[1:], (1, 1, 1, 90, 600, 16, 16)], ids=str)
@pytest.mark.parametrize("kind", ["none", "causal", "float"])
def test_dropout_equals_the_reference_with_the_same_bits(isa, shape, p, kind):
    inputs, mask = _inputs(shape, torch.float64), _mask(kind, shape, torch.float64)
    batch, heads, _, queries, keys, _, value_size = shape
    grad = torch.randn(batch, heads, queries, value_size, dtype=torch.float64)
    keep = _keep_mask((batch, heads, queries, keys), p, seed=5)
    causal = kind == "causal"
    torch.manual_seed(5)
    ours = _run(sdpa, inputs, mask, grad, dropout_p=p, is_causal=causal, enable_gqa=heads != shape[2])
    reference = _run(references.attention, inputs, mask, grad, keep=keep, dropout_p=p, is_causal=causal)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_bounds_are_exact():
    q, k, v = (t.requires_grad_() for t in _inputs((2, 2, 2, 9, 12, 8, 8), torch.float32))
    output = sdpa(q, k, v, dropout_p=1.0)
    assert output.abs().max() == 0
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(output.sum(), (q, k, v)))
    assert torch.equal(sdpa(q, k, v, dropout_p=0), sdpa(q, k, v))


def test_dropout_follows_manual_seed():
    inputs = _inputs((2, 2, 2, 9, 12, 8, 8), torch.float32)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sdpa(*inputs, dropout_p=0.3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# --- autograd, compile, transforms -----------------------------------------------------------------------------------
def _double_inputs(keys: int = 2) -> tuple[Tensor, ...]:
    inputs = _inputs((2, 2, keys, 5, 6, 3, 3), torch.float64)
    return tuple(t.requires_grad_() for t in inputs)


@pytest.mark.parametrize("kind", ["none", "causal", "mask", "grouped"])
def test_gradcheck(isa, kind):
    mask = (torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True),) if kind == "mask" else ()
    inputs = (*_double_inputs(1 if kind == "grouped" else 2), *mask)
    options = {"is_causal": kind == "causal", "enable_gqa": kind == "grouped"}
    function = lambda *args: sdpa(*args, **options)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_gradcheck_with_dropout():
    def function(*args: Tensor) -> Tensor:
        torch.manual_seed(3)
        return sdpa(*args, dropout_p=0.4)

    assert torch.autograd.gradcheck(function, _double_inputs())
    assert torch.autograd.gradgradcheck(function, _double_inputs())


def test_only_wanted_gradients():
    inputs = _inputs((2, 2, 2, 9, 12, 8, 8), torch.float64)
    everything = [t.requires_grad_() for t in inputs]
    expected = torch.autograd.grad(sdpa(*everything).sin().sum(), everything)
    for i in range(3):
        chosen = [t.detach().requires_grad_(i == j) for j, t in enumerate(inputs)]
        (grad,) = torch.autograd.grad(sdpa(*chosen).sin().sum(), chosen[i])
        assert torch.equal(grad, expected[i])


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_opcheck(kind, p):
    shape = (2, 4, 2, 5, 6, 3, 3)
    q, k, v = _inputs(shape, torch.float64)
    mask = _mask(kind, shape, torch.float64)
    seed = torch.ops.tilewright.dropout_seed(q) if p else None
    forward = torch.ops.tilewright.attention_forward.default
    torch.library.opcheck(forward, (q, k, v, mask, seed, p, False, None))
    output, logsumexp = forward(q, k, v, mask, seed, p, False, None)
    wanted = [True, True, True, kind == "float"]
    arguments = (torch.ones_like(output), q, k, v, output, logsumexp, mask, seed, p, False, None, wanted)
    torch.library.opcheck(torch.ops.tilewright.attention_backward.default, arguments)
    if p == 0:
        leaves = [t.requires_grad_() for t in (q, k, v)]
        public = torch.ops.tilewright.scaled_dot_product_attention.default
        torch.library.opcheck(public, (*leaves, mask), {"enable_gqa": True})


def test_opcheck_of_strided_inputs():
    q = torch.randn(2, 5, 2, 3).transpose(1, 2)
    k = torch.randn(2, 2, 3, 6).transpose(2, 3)
    v = torch.randn(2, 6, 2, 3).transpose(1, 2)
    forward = torch.ops.tilewright.attention_forward.default
    torch.library.opcheck(forward, (q, k, v, None, None, 0.0, True, 0.5))
    output, logsumexp = forward(q, k, v, None, None, 0.0, True, 0.5)
    arguments = (output, q, k, v, output, logsumexp, None, None, 0.0, True, 0.5, [True, True, True, False])
    torch.library.opcheck(torch.ops.tilewright.attention_backward.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", ["none", "causal", "float", "dropout", "grouped"])
def test_compile(kind, dynamic):
    inputs = _double_inputs(1 if kind == "grouped" else 2)
    if kind == "float":
        inputs = (*inputs, torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True))
    options = {"is_causal": kind == "causal", "enable_gqa": kind == "grouped", "dropout_p": 0.5 * (kind == "dropout")}
    function = lambda *args: sdpa(*args, **options)  # noqa: E731
    torch._dynamo.reset()  # the cases share one code object, whose recompilations are counted
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for f in (function, compiled):
        torch.manual_seed(1)
        y = f(*inputs)
        results.append([y, *torch.autograd.grad(y.sin().sum(), inputs)])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_transforms():
    q, k, v = (t.detach() for t in _double_inputs())
    for transform in (torch.func.vmap, torch.func.jacrev, torch.func.jacfwd):
        ours, native = (
            transform(lambda q, f=f: f(q, k[:1], v[:1], is_causal=True).sin())(q) for f in (sdpa, native_sdpa)
        )
        torch.testing.assert_close(ours, native)


@pytest.mark.parametrize("mask", [None, "float", "bool"])
def test_autocast_like_native(mask):
    shape = (2, 2, 2, 9, 12, 16, 16)
    inputs = _inputs(shape, torch.float32)
    at = _mask(mask or "none", shape, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, native = sdpa(*inputs, at), native_sdpa(*inputs, at)
    assert_as_accurate(ours, native, references.attention(*inputs, at))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 300, 2100, 32, 32), (8, 6, 2, 60, 80, 16, 16), (1, 2, 1, 1, 3000, 16, 16)], ids=str
)
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_same_bits_for_any_thread_count(shape, p):
    inputs = [t.requires_grad_() for t in _inputs(shape, torch.float32)]
    mask = torch.randn(shape[3], shape[4], requires_grad=True)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        y = sdpa(*inputs, mask, p, enable_gqa=True)
        results.append([y, *torch.autograd.grad(y.square().sum(), (*inputs, mask))])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_subclasses_and_other_dtypes_go_to_native():
    class Tagged(torch.Tensor):
        pass

    q, k, v = _inputs((1, 2, 2, 5, 6, 8, 8), torch.float32)
    assert type(sdpa(q.as_subclass(Tagged), k, v)) is Tagged
    with pytest.raises(RuntimeError):
        sdpa(q.int(), k.int(), v.int())


_MEMORY_PROBE = """
import resource, torch, tilewright.functional as TF
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def run(n):
    x = torch.randn(1, 1, n, 16, requires_grad=True)
    torch.autograd.grad(TF.scaled_dot_product_attention(x, x, x, dropout_p=0.1).sum(), x)
run(64)
before = peak()
run(8192)
print(peak() - before)
"""


def test_memory_grows_with_the_length_only():
    grown = int(
        subprocess.run([sys.executable, "-c", _MEMORY_PROBE], capture_output=True, text=True, check=True).stdout
    )
    # One head of 8192: inputs, outputs and working copies are below 20 MB, the logits would be 256 MB.
    assert grown < 64 * 2**20


# --- bad input, and everything at once -------------------------------------------------------------------------------
def _qkv(*sizes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(s) for s in (sizes if len(sizes) == 3 else sizes * 3)]


BAD = {
    "1-D": lambda f: f(*_qkv((8,))),
    "head size": lambda f: f(*_qkv((2, 3, 5, 8), (2, 3, 7, 9), (2, 3, 7, 9))),
    "value length": lambda f: f(*_qkv((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 6, 9))),
    "heads": lambda f: f(*_qkv((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8))),
    "batches": lambda f: f(*_qkv((3, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8))),
    "grouped heads": lambda f: f(*_qkv((2, 4, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)), enable_gqa=True),
    "grouped without heads": lambda f: f(*_qkv((5, 8)), enable_gqa=True),
    "dtypes": lambda f: f(torch.randn(5, 8), torch.randn(5, 8).double(), torch.randn(5, 8)),
    "mask dtype int": lambda f: f(*_qkv((5, 8)), attn_mask=torch.ones(5, 5, dtype=torch.int32)),
    "mask dtype double": lambda f: f(*_qkv((5, 8)), attn_mask=torch.ones(5, 5).double()),
    "mask sizes": lambda f: f(*_qkv((5, 8)), attn_mask=torch.ones(5, 6)),
    "mask rank": lambda f: f(*_qkv((5, 8)), attn_mask=torch.ones(2, 5, 5)),
    "mask 1-D": lambda f: f(*_qkv((2, 3, 5, 8)), attn_mask=torch.ones(5)),
    "p below 0": lambda f: f(*_qkv((2, 3, 5, 8)), dropout_p=-0.1),
    "p above 1": lambda f: f(*_qkv((2, 3, 5, 8)), dropout_p=1.5),
    "mask and causal": lambda f: f(*_qkv((3, 5, 8)), attn_mask=torch.ones(5, 5).bool(), is_causal=True),
    "not a tensor": lambda f: f(None, *_qkv((5, 8))[:2]),
    "scale": lambda f: f(*_qkv((5, 8)), scale="x"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_raises_what_native_raises(kind):
    with pytest.raises(Exception) as native:  # noqa: PT011 - native's type is the expectation
        BAD[kind](native_sdpa)
    with pytest.raises(native.type):
        BAD[kind](sdpa)


def test_raw_ops_refuse_what_does_not_fit():
    q, k, v = _inputs((1, 2, 2, 5, 6, 8, 8), torch.float32)
    forward, backward = torch.ops.tilewright.attention_forward, torch.ops.tilewright.attention_backward
    with pytest.raises(RuntimeError, match="expected"):
        forward(q, k[:, :, :3], v, None, None, 0.0, False, None)
    with pytest.raises(RuntimeError, match="seed"):
        forward(q, k, v, None, None, 0.5, False, None)
    output, logsumexp = forward(q, k, v, None, None, 0.0, False, None)
    wanted = [True, True, True, False]
    with pytest.raises(RuntimeError, match="logsumexp"):
        backward(output, q, k, v, output, logsumexp[..., 1:], None, None, 0.0, False, None, wanted)
    with pytest.raises(RuntimeError, match="grad_output"):
        backward(output[:, :1], q, k, v, output, logsumexp, None, None, 0.0, False, None, wanted)


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
    _check(_inputs(shape, dtype), _mask(kind, shape, dtype), by_size=True, is_causal=kind == "causal")

"""dropout against the numpy mask, float64 math and native."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import tilewright.functional as TF
from tilewright.testing import DTYPES, assert_as_accurate, ops_called, philox

OPS = torch.ops.tilewright


def _next_mask(p: float, shape) -> Tensor:
    """The mask that the next dropout call will use."""
    count = torch.Size(shape).numel()
    return philox.keep_mask(philox.drawn_seed(), p, count).view(shape)


def _native_with(mask: Tensor, x: Tensor, p: float) -> Tensor:
    """What native computes for a given mask: noise in input's dtype, divided, multiplied."""
    return x * mask.to(x.dtype).div(1 - p)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward(isa, dtype, p):
    # One lane, around the vector widths, a group of 8, a span of 2048 elements, and several spans with a tail.
    for size in (1, 3, 7, 8, 15, 17, 33, 64, 255, 2047, 2048, 2049, 10007):
        x, dy = torch.randn(2, size, dtype=dtype)
        mask = _next_mask(p, (size,))
        leaf = x.clone().requires_grad_()
        y = TF.dropout(leaf, p)
        y.backward(dy)
        for ours, t in ((y.detach(), x), (leaf.grad, dy)):
            reference = t.double() * mask / (1 - p)
            assert_as_accurate(ours, _native_with(mask, t, p), reference, what=f"{size}")
            assert torch.equal(ours != 0, mask & (t != 0))


def test_own_kernels_do_the_work():
    x = torch.randn(4, 8, requires_grad=True)
    called = ops_called(lambda: TF.dropout(x).sum().backward())
    assert {"tilewright::dropout_forward", "tilewright::dropout_backward"} <= called
    assert not any("bernoulli" in name or "native_dropout" in name for name in called)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_inputs_keep_their_bits(isa, dtype):
    x, dy = torch.randn(2, 100, 333, dtype=dtype)
    leaf = x.clone().requires_grad_()
    mask = _next_mask(0.3, x.shape)
    saved: list[int] = []

    def count(t: Tensor) -> Tensor:
        saved.append(t.nbytes)
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        y = TF.dropout(leaf, 0.3)
    assert x.numel() / 8 <= sum(saved) <= x.numel() / 8 + 16  # native keeps a mask of x's size
    y.backward(dy, retain_graph=True)
    assert torch.equal(leaf.grad != 0, mask & (dy != 0))
    contiguous, leaf.grad = leaf.grad, None
    # A gradient that lies otherwise in memory finds its bits from the seed.
    y.backward(dy.t().contiguous().t())
    assert torch.equal(leaf.grad, contiguous)


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_not_finite_like_native(isa, p):
    x = torch.tensor([float("inf"), float("-inf"), float("nan"), -1.0] * 16)
    mask = _next_mask(p, x.shape)
    torch.testing.assert_close(
        TF.dropout(x, p), _native_with(mask, x, p) if p < 1 else F.dropout(x, 1.0), equal_nan=True
    )


@pytest.mark.parametrize("inplace", [False, True])
def test_nothing_to_do_gives_input_itself(inplace):
    x = torch.randn(3, 4, requires_grad=True)
    assert TF.dropout(x, 0.0, inplace=inplace) is x
    assert TF.dropout(x, 0.5, training=False, inplace=inplace) is x
    empty = torch.empty(3, 0)
    assert TF.dropout(empty, 0.5, inplace=inplace) is empty


def test_drops_everything():
    x = torch.randn(5, 7, requires_grad=True)
    y = TF.dropout(x, 1.0)
    assert torch.equal(y, torch.zeros(5, 7))
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.zeros(5, 7))


def test_scalar():
    torch.manual_seed(3)
    values = {TF.dropout(torch.tensor(2.0)).item() for _ in range(64)}
    assert values == {0.0, 4.0}


def _layouts() -> dict[str, Tensor]:
    image, volume = torch.randn(3, 20, 9, 11), torch.randn(2, 3, 4, 5, 6)
    return {
        "transposed": torch.randn(37, 53).t(),
        "batch of transposed": torch.randn(4, 37, 53).transpose(1, 2),
        "heads": torch.randn(2, 7, 5, 16).transpose(1, 2),
        "permuted": torch.randn(5, 6, 7, 8).permute(3, 1, 0, 2),
        "channels_last": image.contiguous(memory_format=torch.channels_last),
        "channels_last, 7x7": torch.randn(2, 130, 7, 7).contiguous(memory_format=torch.channels_last),
        "channels_last, 1 channel": torch.randn(2, 1, 9, 8).contiguous(memory_format=torch.channels_last),
        # More pixels than one tile: 2048 channels leave 256 positions to a tile, 5 channels 52424.
        "channels_last, tiled": torch.randn(1, 2048, 17, 17).contiguous(memory_format=torch.channels_last),
        "channels_last, large": torch.randn(1, 5, 231, 230).contiguous(memory_format=torch.channels_last),
        "channels_last_3d": volume.contiguous(memory_format=torch.channels_last_3d),
        "last dimension strided": torch.randn(6, 5, 40)[..., ::2],
        "rows skipped": torch.randn(6, 5, 40)[:, ::2],
        "expanded": torch.randn(1, 1, 40).expand(6, 5, 40),
        "misaligned": torch.randn(6 * 5 * 40 + 1)[1:].view(6, 5, 40),
        "size one": torch.randn(6, 1, 5).transpose(0, 2),
        "reversed": torch.randn(50).flip(0)[3:],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", _layouts().keys())
def test_mask_is_by_logical_index(isa, kind, dtype):
    x = _layouts()[kind].to(dtype)
    p = 0.3
    mask = _next_mask(p, x.shape)
    y = TF.dropout(x, p)
    assert torch.equal(y, TF.masked_scale(x, mask, 1 / (1 - p)))
    assert y.stride() == F.dropout(x, p).stride()


@settings(deadline=None, max_examples=150)
@given(
    shape=st.lists(st.integers(0, 7), max_size=5),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from(DTYPES),
    p=st.floats(0, 1),
    inplace=st.booleans(),
    step=st.sampled_from([1, 2]),
)
def test_like_native_for_any_layout(shape, order, dtype, p, inplace, step):
    dims = list(range(len(shape)))
    order.shuffle(dims)
    x = torch.randn([size * step for size in shape], dtype=dtype).permute(dims)
    x = x[tuple(slice(None, None, step) for _ in dims)]
    native = F.dropout(x, p)
    mask = _next_mask(p, x.shape) if 0 < p < 1 else torch.full(x.shape, p == 0)
    expected = x.double() * mask * (0.0 if p == 1 else 1 / (1 - p))
    argument = x if not inplace else torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)
    y = TF.dropout(argument, p, inplace=inplace)
    assert (y is argument) == (inplace or p == 0 or x.numel() == 0)
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert inplace or y.stride() == native.stride()
    scaled = expected.to(dtype)  # may overflow to inf in float16 where p is near 1
    torch.testing.assert_close(y, scaled, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)


def test_same_bits_for_any_thread_count():
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        x = torch.linspace(-1, 1, 6 * 64 * 41 * 41).view(6, 64, 41, 41)
        results.append([TF.dropout(t, 0.2) for t in (x, x.contiguous(memory_format=torch.channels_last), x.mT)])
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- inplace ---
@pytest.mark.parametrize("kind", [k for k in _layouts() if k != "expanded"])
def test_inplace(isa, kind):
    x = _layouts()[kind]
    expected = TF.masked_scale(x, _next_mask(0.3, x.shape), 1 / 0.7)
    version = x._version
    assert TF.dropout(x, 0.3, inplace=True) is x
    assert torch.equal(x, expected)
    assert x._version == version + 1


@pytest.mark.parametrize("view", [False, True])
def test_inplace_gradient(view):
    leaf = torch.randn(6, 8, requires_grad=True)
    x = leaf * 2
    target = x[:, ::2] if view else x
    mask = _next_mask(0.5, target.shape)
    assert TF.dropout(target, 0.5, inplace=True) is target
    (grad,) = torch.autograd.grad(x.sum(), leaf)
    expected = torch.full((6, 8), 2.0)
    (expected[:, ::2] if view else expected).mul_(mask * 2.0)
    assert torch.equal(grad, expected)


def test_inplace_is_seen_by_saved_tensors():
    leaf = torch.randn(8, requires_grad=True)
    x = leaf.exp()  # saves its result
    TF.dropout(x, 0.5, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


# --- the rest of PyTorch ---
def _seeded(function):
    def call(*inputs):
        torch.manual_seed(11)
        return function(*inputs)

    return call


def test_gradcheck(isa):
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    function = _seeded(lambda x: TF.dropout(x, 0.4))
    assert torch.autograd.gradcheck(function, (x,), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, (x,))


def test_forward_ad_is_natives():
    x, t = torch.randn(2, 50)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, t)
        y, tangent = torch.autograd.forward_ad.unpack_dual(TF.dropout(dual, 0.5))
    torch.testing.assert_close(tangent, t * (y / x))


def test_transforms():
    x = torch.randn(4, 6)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(TF.dropout)(x)
    same = torch.func.vmap(TF.dropout, randomness="same")(torch.ones(3, 100))
    assert torch.equal(same[0], same[1])
    torch.manual_seed(2)
    ours = torch.func.grad(lambda x: TF.dropout(x).square().sum())(x)
    torch.manual_seed(2)
    assert torch.equal(ours, torch.func.grad(lambda x: F.dropout(x).square().sum())(x))


def test_opcheck():
    x, seed = torch.randn(3, 5), torch.tensor([7])
    for op in (OPS.dropout_forward, OPS.dropout_backward, OPS.dropout_mask):
        images = [torch.randn(shape).to(memory_format=torch.channels_last) for shape in ((2, 3, 4, 5), (4, 1, 5, 7))]
        for tensor in (x, x.t(), *images):
            torch.library.opcheck(op.default, (tensor, seed, 0.3))
    torch.library.opcheck(OPS.dropout_forward_.default, (x, seed, 0.3))
    torch.library.opcheck(OPS.dropout_forward_keeping.default, (x, seed, 0.3))
    keep_bits = OPS.dropout_forward_keeping(x, seed, 0.3)[1]
    torch.library.opcheck(OPS.dropout_backward.default, (x, seed, 0.3, keep_bits))
    torch.library.opcheck(OPS.dropout.default, (x.requires_grad_(), 0.3, True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_gives_the_eager_mask(backend, dynamic):
    def function(x):
        return TF.dropout(TF.dropout(x.sin(), 0.3).cos(), 0.5, inplace=True)

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)
    x = torch.randn(9, 31, requires_grad=True)
    results = []
    for call in (function, compiled, compiled):
        torch.manual_seed(4)
        y = call(x)
        results.append((y, *torch.autograd.grad(y.sin().sum(), x)))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other)
        assert torch.equal(results[0][0] == 0, other[0] == 0)
    assert not torch.equal(compiled(x), compiled(x))  # the seed is drawn at run time


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_recomputes_the_mask(use_reentrant):
    x = torch.randn(50, 50, requires_grad=True)

    def function(x):
        return TF.dropout(x.sin(), 0.5).square()

    torch.manual_seed(6)
    (expected,) = torch.autograd.grad(function(x).sum(), x)
    torch.manual_seed(6)
    checkpoint(function, x, use_reentrant=use_reentrant).sum().backward()
    assert torch.equal(x.grad, expected)


def test_backward_keeps_the_seed_only():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        TF.dropout(torch.randn(1000, requires_grad=True))
    assert [t.nbytes for t in kept] == [8]


def test_meta_and_other_dtypes():
    meta = TF.dropout(torch.empty(2, 3, 4, 5, device="meta").to(memory_format=torch.channels_last))
    assert meta.is_contiguous(memory_format=torch.channels_last)
    assert TF.dropout(torch.randn(4).to(torch.float8_e4m3fn), training=False).dtype == torch.float8_e4m3fn


BAD = {
    "p below": lambda f: f(torch.randn(3), -0.1),
    "p above": lambda f: f(torch.randn(3), 1.1),
    "p nan": lambda f: f(torch.randn(3), float("nan")),
    "p text": lambda f: f(torch.randn(3), "a"),
    "not a tensor": lambda f: f([1.0, 2.0]),
    "training none": lambda f: f(torch.randn(3), 0.5, None),
    "training number": lambda f: f(torch.randn(3), 0.5, 1),
    "integers": lambda f: f(torch.arange(3)),
    "integers inplace": lambda f: f(torch.arange(3), inplace=True),
    "leaf inplace": lambda f: f(torch.randn(3, requires_grad=True), inplace=True),
    "leaf inplace, p one": lambda f: f(torch.randn(3, requires_grad=True), 1.0, inplace=True),
    "view of a leaf inplace": lambda f: f(torch.randn(3, requires_grad=True)[1:], inplace=True),
    "overlap inplace": lambda f: f(torch.randn(1).expand(4), inplace=True),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_raises_what_native_raises(kind):
    with pytest.raises(Exception) as native:  # noqa: PT011 - native's type is the expectation
        BAD[kind](F.dropout)
    with pytest.raises(native.type):
        BAD[kind](TF.dropout)


@pytest.mark.parametrize("shape", [(4, 1, 100, 70), (4, 6, 1, 1), (1, 3, 5, 7)])
def test_compiled_strides_are_eager(shape):
    x = torch.randn(shape).to(memory_format=torch.channels_last)

    def strides(x):
        return TF.dropout(x, 0.5).stride()

    assert torch.compile(strides, backend="aot_eager", fullgraph=True)(x) == strides(x) == F.dropout(x, 0.5).stride()

"""dropout on the GPU against the numpy mask, float64 math and native."""

import pytest
import torch
import torch.nn.functional as F

import tilewright.functional as TF
from tests.gpu.masks import LAYOUTS, SEED, drawn_mask, layouts, mask_of, seed_on
from tilewright.testing import DTYPES, assert_as_accurate, ops_called

OPS = torch.ops.tilewright
# Below a group, around one, a thread's four groups, a tile of a block, and several tiles with a tail.
SIZES = (1, 7, 8, 9, 33, 255, 2049, 8192, 20007)


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward(device, dtype, p):
    for size in SIZES:
        x, dy = torch.randn(2, size, device=device).to(dtype)
        mask = drawn_mask(x, p)
        leaf = x.clone().requires_grad_()
        y = TF.dropout(leaf, p)
        y.backward(dy)
        for ours, t in ((y.detach(), x), (leaf.grad, dy)):
            native = t * mask.to(dtype).div(1 - p)
            assert_as_accurate(ours, native, t.double() * mask / (1 - p), what=f"{size}")
            assert torch.equal(ours != 0, mask & (t != 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_mask_is_by_logical_index(device, kind, dtype):
    x, p = layouts(device)[kind].to(dtype), 0.3
    expected = TF.masked_scale(x, mask_of(x, p), 1 / (1 - p))
    y = OPS.dropout_forward(x, seed_on(device), p)
    assert torch.equal(y, expected)
    assert y.stride() == F.dropout(x, p).stride()
    assert torch.equal(OPS.dropout_backward(x, seed_on(device), p), expected)
    target = x.clone() if kind == "expanded" else x
    OPS.dropout_forward_(target, seed_on(device), p)
    assert torch.equal(target, expected)


# 65538 and 16: p whose threshold has lower halves that decide once in a group of a few thousand; 2**-20: hi is 0.
@pytest.mark.parametrize("p", [0.0, 2.0**-20, 1e-9, 1 / 3, 0.5, 0.75, 1 - 1e-9, 1.0])
def test_mask_at_every_probability(device, p):
    like = torch.empty(3, 7, 1001, device=device)
    assert torch.equal(OPS.dropout_mask(like, seed_on(device), p), mask_of(like, p))
    y = OPS.dropout_forward(torch.ones_like(like), seed_on(device), p)
    assert torch.equal(y != 0, mask_of(like, p))


def _with_deciding_extra() -> tuple[int, float]:
    """A seed and p for which the second number of some of 65536 elements decides both ways."""
    p = (0x4000_8000) / 2**32
    for seed in range(64):
        like = torch.empty(65536)
        kept = mask_of(like, p, seed)
        lower, upper = mask_of(like, 0x4000_0000 / 2**32, seed), mask_of(like, 0x4001_0000 / 2**32, seed)
        among = kept[lower & ~upper]  # the numbers that equal the upper half
        if among.any() and not among.all():
            return seed, p
    raise AssertionError("no seed has both cases")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_the_lower_half_of_the_threshold_decides_where_numbers_are_equal(device, dtype):
    seed, p = _with_deciding_extra()
    x = torch.ones(65536, device=device, dtype=dtype)
    mask, on_device = mask_of(x, p, seed), seed_on(device, seed)
    assert torch.equal(OPS.dropout_forward(x, on_device, p) != 0, mask)
    assert torch.equal(OPS.dropout_mask(x, on_device, p), mask)
    z = OPS.dropout_add_layer_norm_forward(x.view(-1, 64), x.view(-1, 64), (64,), None, None, 1e-5, on_device, p, True)
    assert torch.equal(z[1].view(-1) != 1, mask)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("size", [5, 64, 10007])
def test_kept_bits(device, size, offset):
    x, p = torch.randn(size + offset, device=device)[offset:], 0.3
    y, bits = OPS.dropout_forward_keeping(x, seed_on(device), p)
    mask = mask_of(x, p)
    assert torch.equal(y, OPS.dropout_forward(x, seed_on(device), p))
    unpacked = ((bits[:, None] >> torch.arange(8, device=device)) & 1).view(-1)
    assert torch.equal(unpacked[:size].bool(), mask)
    assert not bits[-4:].any()
    # The bits decide, not the seed.
    assert torch.equal(OPS.dropout_backward(x, seed_on(device, 7), p, bits), y)


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_not_finite_like_native(device, p):
    x = torch.tensor([float("inf"), float("-inf"), float("nan"), -1.0] * 16, device=device)
    y = OPS.dropout_forward(x, seed_on(device), p)
    expected = x * (mask_of(x, p) * (0.0 if p == 1 else 1 / (1 - p)))
    torch.testing.assert_close(y, expected, equal_nan=True)
    torch.testing.assert_close(TF.dropout(x, 1.0), F.dropout(x, 1.0), equal_nan=True)


def test_inplace_and_views(device):
    leaf = torch.randn(6, 48, device=device, requires_grad=True)
    x = leaf * 2
    mask = drawn_mask(x[:, ::2], 0.5)
    TF.dropout(x[:, ::2], 0.5, inplace=True)
    (grad,) = torch.autograd.grad(x.sum(), leaf)
    expected = torch.full((6, 48), 2.0, device=device)
    expected[:, ::2].mul_(mask * 2.0)
    assert torch.equal(grad, expected)


def test_own_kernels_and_little_saved(device):
    x = torch.randn(100, 333, device=device, requires_grad=True)
    called = ops_called(lambda: TF.dropout(x).sum().backward())
    forward = "tilewright::dropout_forward" if device.type == "cuda" else "tilewright::dropout_forward_keeping"
    assert {forward, "tilewright::dropout_backward"} <= called


def test_a_seed_elsewhere_is_refused(device):
    x = torch.ones(8, device=device)
    for bad in (seed_on(device).int(), seed_on(device).repeat(2), torch.empty(1, dtype=torch.int64, device="meta")):
        with pytest.raises(RuntimeError, match="seed must be one int64"):
            OPS.dropout_forward(x, bad, 0.5)
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        OPS.dropout_forward(x, seed_on(device), 1.5)
    with pytest.raises(RuntimeError, match="keep_bits must be uint8"):
        OPS.dropout_backward(x, seed_on(device), 0.5, torch.zeros(4, dtype=torch.uint8, device=device))


def test_opcheck(device):
    x, seed = torch.randn(3, 50, device=device), seed_on(device)
    for op, arguments in (
        (OPS.dropout_forward, (x.t(), seed, 0.3)),
        (OPS.dropout_forward_keeping, (x, seed, 0.3)),
        (OPS.dropout_backward, (x, seed, 0.3)),
        (OPS.dropout_mask, (x, seed, 0.3)),
    ):
        torch.library.opcheck(op.default, arguments)


def test_seed_of_other_masks(device):
    x = torch.ones(4096, device=device)
    seeds = (SEED, SEED + 1, SEED + 2**32)
    results = [OPS.dropout_forward(x, seed_on(device, s), 0.5) for s in seeds]
    assert all(torch.equal(y != 0, mask_of(x, 0.5, s)) for y, s in zip(results, seeds, strict=True))

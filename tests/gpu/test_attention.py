"""Attention's Triton kernels against float64 math: on the card, or without one in Triton's interpreter."""

from functools import partial

import pytest
import torch
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import assert_as_accurate, max_error, philox, references
from tilewright.triton import attention, attention_config
from tilewright.triton import variants as V

from ..attention_cases import mask_of, native_sdpa, run

sdpa = TF.scaled_dot_product_attention
forward, backward = torch.ops.tilewright.attention_forward, torch.ops.tilewright.attention_backward
NAMES = ("output", "dq", "dk", "dv", "dmask")


def inputs_of(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    batch, heads, key_heads, queries, keys, size, value_size = shape
    sizes = ((heads, queries, size), (key_heads, keys, size), (key_heads, keys, value_size))
    return [torch.randn(batch, *each, dtype=dtype, device=device) for each in sizes]


def check(inputs: list[Tensor], mask: Tensor | None = None, **options) -> None:
    grouped = {"enable_gqa": inputs[0].dim() > 2 and inputs[0].shape[-3] != inputs[1].shape[-3]}
    grad = torch.randn(*inputs[0].shape[:-1], inputs[2].shape[-1], dtype=inputs[0].dtype, device=inputs[0].device)
    ours = run(sdpa, inputs, mask, grad, **options, **grouped)
    natives = [run(native_sdpa, inputs, mask, grad, **options, **grouped)]
    if grad.is_cuda:
        # Where a GPU's fused kernels refuse (head size 1), native is in float32 throughout; its fused kernel on the CPU
        # rounds weights to the tensors' type before the products, as every fused one does.
        on_cpu = run(native_sdpa, [t.cpu() for t in inputs], None if mask is None else mask.cpu(), grad.cpu(),
                     **options, **grouped)  # fmt: skip
        natives.append([t.to(grad.device) for t in on_cpu])
    reference = run(references.attention, inputs, mask, grad.double(), **options)
    largest = max(c.abs().max().item() for c in reference)
    for name, a, c, *those in zip(NAMES, ours, reference, *natives, strict=False):
        b = max(those, key=lambda native, c=c: max_error(native, c))
        if c.abs().max().item() < 1e-12 * largest:  # 0 by cancellation: it has no size of its own
            assert a.abs().max().item() <= 32 * torch.finfo(inputs[0].dtype).eps * largest, name
        else:
            assert_as_accurate(a, b, c, what=name)


# (batch, heads, key heads, Sq, Sk, D, Dv) and the kind of mask
CASES = (
    ((1, 2, 2, 70, 67, 16, 16), "none"),
    ((1, 2, 1, 67, 37, 24, 40), "causal"),
    ((1, 2, 2, 37, 71, 17, 5), "causal"),
    ((2, 2, 1, 19, 41, 8, 8), "bool"),
    ((1, 1, 1, 23, 40, 40, 72), "bool keys"),
    ((1, 2, 1, 33, 41, 64, 64), "float"),
    ((1, 2, 2, 21, 35, 8, 16), "float rows"),
    ((1, 2, 2, 21, 35, 16, 8), "float32"),
    ((1, 1, 1, 40, 35, 136, 130), "hidden rows"),
    ((1, 1, 1, 19, 1, 16, 16), "none"),
    ((1, 1, 1, 17, 29, 1, 1), "window"),
)


@pytest.mark.parametrize(("shape", "kind"), CASES, ids=str)
def test_forward_and_backward(device, gpu_dtypes, shape, kind):
    for dtype in gpu_dtypes:
        mask = mask_of(kind, shape, dtype)
        check(inputs_of(shape, dtype, device), None if mask is None else mask.to(device), is_causal=kind == "causal")


@pytest.mark.parametrize("causal", [False, True])
def test_descriptors_read_what_pointers_read(device, table, causal):
    """Head sizes and lengths inside a tile, tensors whose heads come last, one key head for all."""
    for shape in ((1, 2, 2, 37, 45, 24, 24), (2, 2, 1, 19, 135, 64, 40)):
        inputs = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in inputs_of(shape, torch.float16, device)]
        with V.observed() as seen:
            check(inputs, is_causal=causal)
        reads = [kind for variant in seen for name, kind in variant.signature if name == "key"]
        assert reads
        assert all(kind.startswith("tensordesc") == (table >= 90) for kind in reads)


def test_every_launch_is_a_listed_variant(device, gpu_dtypes):
    listed = set(attention.variants(V.architecture_of(device)))
    with V.observed() as seen:
        for dtype in gpu_dtypes:
            for shape in ((1, 1, 1, 17, 20, 8, 8), (1, 2, 1, 1, 700, 8, 8)):
                inputs = inputs_of(shape, dtype, device)
                mask = torch.randn(1, shape[4], dtype=dtype, device=device)
                run(sdpa, inputs, mask, torch.ones(1, device=device).expand(inputs[0].shape), enable_gqa=True)
    assert len({variant.kernel for variant in seen}) == 7
    assert set(seen) <= listed


# --- few queries -----------------------------------------------------------------------------------------------------
DECODE = (
    ((2, 4, 2, 1, 300, 16, 24), "none"),
    ((1, 4, 1, 3, 150, 8, 8), "float"),
    ((1, 2, 2, 2, 131, 16, 16), "causal"),
    ((1, 1, 1, 1, 5, 8, 8), "bool"),
    ((1, 2, 2, 4, 140, 8, 8), "hidden rows"),
)


@pytest.mark.parametrize(("shape", "kind"), DECODE, ids=str)
def test_few_queries(device, gpu_dtypes, shape, kind):
    for dtype in gpu_dtypes:
        mask = mask_of(kind, shape, dtype)
        mask = None if mask is None else mask.to(device)
        inputs, options = inputs_of(shape, dtype, device), {"is_causal": kind == "causal"}
        with V.observed() as seen:
            ours = sdpa(*inputs, mask, **options, enable_gqa=True)
        assert seen[0].kernel.__name__ == "attention_decode_kernel"
        native = native_sdpa(*inputs, mask, **options, enable_gqa=True)
        assert_as_accurate(ours, native, references.attention(*inputs, mask, **options))


def test_the_logsumexp_is_that_of_the_logits(device):
    """Of the ordinary kernel, and of the merge; +Inf where nothing is attended to."""
    for shape in ((1, 2, 2, 20, 70, 16, 16), (1, 2, 1, 2, 300, 16, 16)):
        query, key, value = inputs_of(shape, torch.float32, device)
        mask = torch.rand(shape[3], shape[4], device=device) > 0.5
        mask[1] = False
        _, logsumexp = forward(query, key, value, mask, None, 0.0, False, 0.3)
        logits = query.double() @ key.double().repeat_interleave(shape[1] // shape[2], 1).mT * 0.3
        expected = logits.masked_fill(~mask, -torch.inf).logsumexp(-1)
        expected[:, :, 1] = torch.inf
        torch.testing.assert_close(logsumexp.double(), expected, rtol=1e-6, atol=1e-5)


# --- dropout ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "p"),
    [((1, 2, 1, 35, 40, 8, 8), 0.3), ((1, 2, 2, 19, 37, 8, 8), 0.5), ((2, 2, 1, 2, 75, 8, 8), 0.25)],
    ids=str,
)
def test_dropout_drops_what_the_definition_says(device, gpu_dtypes, shape, p):
    """Aligned rows, rows that begin inside a group of eight, and the packed kernel."""
    seed = torch.tensor([0x123456789ABCDEF], device=device)
    keep = philox.keep_mask(seed.item(), p, shape[0] * shape[1] * shape[3] * shape[4])
    keep = keep.view(shape[0], shape[1], shape[3], shape[4]).to(device)
    for dtype in gpu_dtypes:
        inputs = inputs_of(shape, dtype, device)
        output, logsumexp = forward(*inputs, None, seed, p, False, None)
        grad = torch.randn_like(output)
        ours = [output, *backward(grad, *inputs, output, logsumexp, None, seed, p, False, None, [True] * 3 + [False])]
        wide = [t.double().requires_grad_() for t in inputs]
        expected = references.attention(*wide, keep=keep, dropout_p=p)
        reference = [expected, *torch.autograd.grad(expected, wide, grad.double())]
        tolerance = 4e-6 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
        for name, a, b in zip(NAMES, ours[:4], reference, strict=False):
            error = (a.double() - b).abs().max().item()
            assert error <= tolerance * b.abs().max().item(), (name, error)


def test_rare_second_numbers_are_drawn(device):
    """A threshold whose low half settles elements: p just above a multiple of 2^-16, over enough elements."""
    p, shape = (1000 * 65536 + 40000) / 2**32, (1, 1, 1, 256, 1024, 8, 8)
    query, key = torch.zeros(1, 1, 256, 8, device=device), torch.zeros(1, 1, 1024, 8, device=device)
    for seed in (5, 6):
        keep = philox.keep_mask(seed, p, 256 * 1024).view(256, 1024).to(device)
        value = torch.ones(1, 1, 1024, 8, device=device)
        output, _ = forward(query, key, value, None, torch.tensor([seed], device=device), p, False, None)
        counts = (output[0, 0, :, 0] * 1024 * (1 - p)).round()
        assert torch.equal(counts, keep.sum(1).float()), shape


def test_p_1_drops_everything(device):
    inputs = inputs_of((1, 1, 1, 20, 24, 8, 8), torch.float32, device)
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    output, logsumexp = forward(*inputs, None, seed, 1.0, False, None)
    grads = backward(output, *inputs, output, logsumexp, None, seed, 1.0, False, None, [True, True, True, False])
    assert output.abs().max() == 0
    assert all(grad.abs().max() == 0 for grad in grads[:3])


# --- layouts ---------------------------------------------------------------------------------------------------------
def _layouts(device: torch.device) -> dict[str, list[Tensor]]:
    make = partial(torch.randn, device=device)
    fused = make(1, 19, 3, 2, 16)
    return {
        "fused qkv": [fused[:, :, i].transpose(1, 2) for i in range(3)],
        "sequence first": [make(19, 2, 1, 16).permute(1, 2, 0, 3) for _ in range(3)],
        "last dimension strided": [make(1, 2, 16, 19).transpose(2, 3) for _ in range(3)],
        "expanded": [make(1, 1, 19, 16).expand(2, 2, 19, 16) for _ in range(3)],
        "misaligned": [make(2 * 19 * 16 + 1)[1:].view(1, 2, 19, 16) for _ in range(3)],
        "3-D": [make(19, 2, 16).transpose(0, 1) for _ in range(3)],
        "2-D": [make(19, 16) for _ in range(3)],
        "5-D, not one stride": [make(2, 2, 2, 19, 8).transpose(0, 1) for _ in range(3)],
    }


@pytest.mark.parametrize("kind", _layouts(torch.device("cpu")))
def test_layouts(device, kind):
    inputs = _layouts(device)[kind]
    assert_as_accurate(sdpa(*inputs), native_sdpa(*inputs), references.attention(*inputs))
    grad = torch.randn_like(inputs[0])
    output, logsumexp = forward(*inputs, None, None, 0.0, True, None)
    grads = backward(grad, *inputs, output, logsumexp, None, None, 0.0, True, None, [True, True, True, False])
    meta = [t.to("meta") for t in (grad, *inputs, output, logsumexp)]
    fake_output, _ = forward(*meta[1:4], None, None, 0.0, True, None)
    fakes = backward(*meta, None, None, 0.0, True, None, [True, True, True, False])
    wide = [t.double().requires_grad_() for t in inputs]
    reference = torch.autograd.grad(references.attention(*wide, is_causal=True), wide, grad.double())
    assert output.stride() == fake_output.stride()
    for ours, fake, expected in zip(grads[:3], fakes[:3], reference, strict=True):
        assert ours.stride() == fake.stride()
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wanted", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)], ids=str)
def test_only_what_is_asked_for(device, wanted):
    inputs, mask = inputs_of((1, 2, 2, 17, 20, 8, 8), torch.float16, device), torch.randn(17, 20, device=device)
    output, logsumexp = forward(*inputs, mask, None, 0.0, False, None)
    arguments = (torch.randn_like(output), *inputs, output, logsumexp, mask, None, 0.0, False, None)
    with V.observed() as seen:
        some = backward(*arguments, [bool(w) for w in wanted])
    products = [v.kernel.__name__ for v in seen if "delta" not in v.kernel.__name__]
    assert len(products) == 1 + wanted[3]  # a learned mask makes its own delta first
    for one, every, want in zip(some, backward(*arguments, [True] * 3 + [bool(wanted[3])]), wanted, strict=True):
        assert (one is not None) == bool(want)
        assert one is None or torch.equal(one, every)


# --- masks -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "shape",
    [(), (1, 1), (41,), (37, 1), (2, 1, 1, 41), (1, 2, 37, 41), (2, 1, 1), (2, 2, 37, 41), (2, 1, 37, 1)],
    ids=str,
)
def test_mask_gradient_is_summed_over_what_it_is_broadcast_over(device, shape):
    inputs = inputs_of((2, 2, 1, 37, 41, 8, 8), torch.float32, device)
    if len(shape) < 2:
        inputs = [t[0] for t in inputs]
    check_mask_gradient(inputs, torch.randn(shape, device=device))


@pytest.mark.parametrize("shape", [(2, 1, 3, 1, 17, 20), (1, 2, 1, 2, 1, 20), (2, 1, 3, 2, 1, 1)], ids=str)
def test_mask_gradient_of_more_dimensions(device, shape):
    inputs = [torch.randn(2, 2, 3, 2, n, 8, device=device) for n in (17, 20, 20)]
    check_mask_gradient(inputs, torch.randn(shape, device=device))


def check_mask_gradient(inputs: list[Tensor], mask: Tensor) -> None:
    grad = torch.randn_like(inputs[0])
    heads, key_heads = inputs[0].shape[-3], inputs[1].shape[-3]
    ours = run(sdpa, inputs, mask, grad, enable_gqa=heads != key_heads)
    reference = run(references.attention, inputs, mask, grad.double())
    largest = max(c.abs().max().item() for c in reference)
    for name, a, b in zip(NAMES, ours, reference, strict=True):
        assert (a.double() - b).abs().max().item() <= 1e-5 * largest, name


def test_masks_are_read_through_their_strides(device):
    inputs = inputs_of((2, 2, 2, 21, 40, 16, 16), torch.float32, device)
    masks = {
        "transposed": torch.randn(40, 21).t(),
        "sliced": torch.randn(21, 90)[:, 3:83:2],
        "rows": torch.randn(2, 1, 21, 1),
        "offset bool": (torch.rand(21, 47) > 0.5)[:, 7:],
        "expanded bool": (torch.rand(1, 40) > 0.5).expand(2, 2, 21, 40),
        "heads, then batches": torch.randn(2, 2, 21, 40).transpose(0, 1),
    }
    for name, mask in masks.items():
        mask = mask.to(device)
        ours, native = sdpa(*inputs, mask), native_sdpa(*inputs, mask)
        assert_as_accurate(ours, native, references.attention(*inputs, mask), what=name)


def test_rows_that_attend_to_nothing_are_zero_with_zero_gradients(device, gpu_dtypes):
    for dtype in gpu_dtypes:
        for mask in (torch.zeros(20, 35, dtype=torch.bool), torch.full((20, 35), -torch.inf, dtype=dtype)):
            mask[3] = True if mask.dtype == torch.bool else 0.0
            q, k, v = (t.requires_grad_() for t in inputs_of((1, 1, 1, 20, 35, 8, 8), dtype, device))
            output = sdpa(q, k, v, mask.to(device))
            dq, dk, dv = torch.autograd.grad(output.sin().sum(), (q, k, v))
            others = torch.arange(20) != 3
            assert output[:, :, others].abs().max() == 0
            assert dq[:, :, others].abs().max() == 0
            assert output[:, :, 3].abs().max() > 0
            assert dk.isfinite().all()
            assert dv.isfinite().all()


def test_lowest_finite_mask_keeps_its_meaning(device, gpu_dtypes):
    for dtype in gpu_dtypes:
        q, k, v = inputs_of((1, 1, 1, 20, 40, 8, 8), dtype, device)
        mask = torch.zeros(20, 40, device=device)
        mask[:, 20:] = torch.finfo(torch.float32).min
        mask[2] = torch.finfo(torch.float32).min  # all keys weigh the same
        assert_as_accurate(sdpa(q, k, v, mask)[:, :, 3:], native_sdpa(q, k, v, mask)[:, :, 3:],
                           references.attention(q, k, v, mask)[:, :, 3:])  # fmt: skip
        torch.testing.assert_close(sdpa(q, k, v, mask)[:, :, 2], v.mean(2), rtol=0, atol=2e-3)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_logits(device, size):
    q, k, v = inputs_of((1, 1, 1, 35, 40, 16, 16), torch.float32, device)
    mask, grad, large = torch.randn(35, 40, device=device) * size, torch.randn_like(q), [q * size / 4, k, v]
    assert_as_accurate(sdpa(q, k, v, mask), native_sdpa(q, k, v, mask), references.attention(q, k, v, mask))
    ours = run(sdpa, large, None, grad)
    reference = run(references.attention, large, None, grad.double())
    assert_as_accurate(ours[0], native_sdpa(*large), reference[0])
    for a, b in zip(ours[1:], reference[1:], strict=True):
        # A saved logsumexp near `size` is rounded to size * eps, and so is every weight made from it.
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=4 * size * 2**-23 * b.abs().max().item())


@pytest.mark.parametrize("scale", [0.0, -2.0, 0.3, torch.nan])
def test_scale(device, scale):
    q, k, v = inputs_of((1, 1, 1, 20, 40, 8, 8), torch.float16, device)
    if scale != scale:
        assert sdpa(q, k, v, scale=scale).isnan().all()
    else:
        check([q, k, v], scale=scale)


# --- promises --------------------------------------------------------------------------------------------------------
def test_the_same_call_gives_the_same_bits(device):
    inputs = inputs_of((1, 2, 1, 37, 41, 8, 8), torch.float16, device)
    mask, grad = torch.randn(1, 41, device=device), torch.randn(1, 2, 37, 8, dtype=torch.float16, device=device)
    first, second = (run(sdpa, inputs, mask, grad, enable_gqa=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("sizes", [(0, 2, 5, 7), (2, 0, 5, 7), (2, 2, 0, 7), (2, 2, 5, 0)], ids=str)
def test_empty(device, sizes):
    batch, heads, queries, keys = sizes
    inputs = inputs_of((batch, heads, heads, queries, keys, 8, 8), torch.float32, device)
    mask = torch.randn(queries, keys, device=device)
    ours = run(sdpa, inputs, None, torch.ones_like(inputs[0]))
    assert [t.shape for t in ours] == [t.shape for t in (inputs[0], *inputs)]
    output, logsumexp = forward(*inputs, mask, None, 0.0, False, None)
    ours += backward(output, *inputs, output, logsumexp, mask, None, 0.0, False, None, [True] * 4)
    assert ours[-1].shape == mask.shape
    assert all((t == 0).all() for t in ours)


def test_no_head_size_attends_to_all_keys_alike(device):
    q, k, v = (torch.randn(2, *s, device=device) for s in ((20, 0), (7, 0), (7, 3)))
    torch.testing.assert_close(sdpa(q, k, v), v.mean(1, keepdim=True).expand(2, 20, 3))


def test_heads_that_are_too_wide_are_refused(device):
    assert attention_config.serves(256, 256) is None
    assert "256" in str(attention_config.serves(257, 8))
    q = torch.randn(1, 1, 4, 257, device=device)
    with pytest.raises(RuntimeError, match="head sizes above 256"):
        attention.attention_forward(q, q, q, None, None, 0.0, False, None)

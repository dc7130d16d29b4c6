"""scaled_dot_product_attention under autograd, compile, transforms, autocast, threads; its dropout and its memory."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tilewright.testing import assert_as_accurate, references

from .attention_cases import SHAPES, inputs_of, mask_of, native_sdpa, run, sdpa


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
    inputs, mask = inputs_of(shape, torch.float64), mask_of(kind, shape, torch.float64)
    batch, heads, _, queries, keys, _, value_size = shape
    grad = torch.randn(batch, heads, queries, value_size, dtype=torch.float64)
    keep = _keep_mask((batch, heads, queries, keys), p, seed=5)
    causal = kind == "causal"
    torch.manual_seed(5)
    ours = run(sdpa, inputs, mask, grad, dropout_p=p, is_causal=causal, enable_gqa=heads != shape[2])
    reference = run(references.attention, inputs, mask, grad, keep=keep, dropout_p=p, is_causal=causal)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_bounds_are_exact():
    q, k, v = (t.requires_grad_() for t in inputs_of((2, 2, 2, 9, 12, 8, 8), torch.float32))
    output = sdpa(q, k, v, dropout_p=1.0)
    assert output.abs().max() == 0
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(output.sum(), (q, k, v)))
    assert torch.equal(sdpa(q, k, v, dropout_p=0), sdpa(q, k, v))
    before = torch.get_rng_state()
    sdpa(q, k, v, dropout_p=1.0)
    assert torch.equal(torch.get_rng_state(), before)  # as natively, nothing is drawn where all is dropped


def test_dropout_follows_manual_seed():
    inputs = inputs_of((2, 2, 2, 9, 12, 8, 8), torch.float32)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sdpa(*inputs, dropout_p=0.3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# --- autograd, compile, transforms -----------------------------------------------------------------------------------
def _double_inputs(keys: int = 2) -> tuple[Tensor, ...]:
    inputs = inputs_of((2, 2, keys, 5, 6, 3, 3), torch.float64)
    return tuple(t.requires_grad_() for t in inputs)


@pytest.mark.parametrize("kind", ["none", "causal", "mask", "grouped"])
def test_gradcheck(isa, kind):
    mask = (torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True),) if kind == "mask" else ()
    inputs = (*_double_inputs(1 if kind == "grouped" else 2), *mask)
    options = {"is_causal": kind == "causal", "enable_gqa": kind == "grouped"}

    def function(*args):
        return sdpa(*args, **options)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_gradcheck_with_dropout():
    def function(*args: Tensor) -> Tensor:
        torch.manual_seed(3)
        return sdpa(*args, dropout_p=0.4)

    assert torch.autograd.gradcheck(function, _double_inputs())
    assert torch.autograd.gradgradcheck(function, _double_inputs())


def test_only_wanted_gradients():
    inputs = inputs_of((2, 2, 2, 9, 12, 8, 8), torch.float64)
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
    q, k, v = inputs_of(shape, torch.float64)
    mask = mask_of(kind, shape, torch.float64)
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

    def function(*args):
        return sdpa(*args, **options)

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
    inputs = inputs_of(shape, torch.float32)
    at = mask_of(mask or "none", shape, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, native = sdpa(*inputs, at), native_sdpa(*inputs, at)
    assert_as_accurate(ours, native, references.attention(*inputs, at))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 300, 2100, 32, 32), (8, 6, 2, 60, 80, 16, 16), (1, 2, 1, 1, 3000, 16, 16)], ids=str
)
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_same_bits_for_any_thread_count(shape, p):
    inputs = [t.requires_grad_() for t in inputs_of(shape, torch.float32)]
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

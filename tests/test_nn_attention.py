"""tilewright.nn.MultiheadAttention against torch.nn's: options, masks, layouts, dropout, autocast."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

import tilewright.nn as TN
from tilewright.testing import assert_as_accurate

from .layer_pairs import pair

ATTENTION_KINDS = {
    "plain": {},
    "no bias": {"bias": False},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
    "kdim vdim": {"kdim": 6, "vdim": 10},
    "kdim vdim no bias": {"kdim": 6, "vdim": 10, "bias": False, "add_zero_attn": True},
}


def _attention_masks(masks: str, batch: int, heads: int, queries: int, keys: int) -> dict[str, Tensor | bool | None]:
    """Masks that leave every query a key; a "+"-joined list of kinds."""
    found: dict[str, Tensor | bool | None] = {}
    for kind in masks.split("+"):
        if kind in ("bool", "bool3", "float", "float3"):
            shape = (batch * heads, queries, keys) if kind.endswith("3") else (queries, keys)
            hidden = torch.rand(shape) < 0.3
            hidden[..., 0] = False
            found["attn_mask"] = (
                hidden if kind.startswith("bool") else torch.randn(shape).masked_fill(hidden, -torch.inf)
            )
        elif kind == "causal":
            found["attn_mask"] = torch.ones(queries, keys, dtype=torch.bool).triu(1)
            found["is_causal"] = True
        elif kind in ("padding", "float padding"):
            hidden = torch.rand(batch, keys) < 0.3
            hidden[..., 0] = False
            found["key_padding_mask"] = (
                hidden if kind == "padding" else torch.zeros(batch, keys).masked_fill(hidden, -torch.inf)
            )
    return found


MASKS = (
    "none",
    "bool",
    "bool3",
    "float",
    "float3",
    "causal",
    "padding",
    "float padding",
    "bool+padding",
    "causal+padding",
)
MASKS += ("float3+float padding", "bool+float padding")


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("kind", ATTENTION_KINDS)
def test_attention_like_torchs(kind, masks):
    """Layouts x shared inputs x weights: outputs, weights and all gradients, in float64."""
    options, heads, batch, queries = ATTENTION_KINDS[kind], 2, 3, 4
    separate = "kdim" in options
    for batch_first, batched, shared, need_weights, average in itertools.product(
        (False, True), (False, True), ("no", "key", "all"), (False, True), (False, True)
    ):
        if (separate and shared != "no") or (average and not need_weights):
            continue
        keys = queries if shared == "all" else 5
        native, ours = pair("MultiheadAttention", (8, heads), {**options, "batch_first": batch_first}, torch.float64)

        def draw(length: int, size: int, batch_first=batch_first, batched=batched) -> Tensor:
            shape = (batch, length, size) if batch_first else (length, batch, size)
            return torch.randn(shape if batched else (length, size), dtype=torch.float64, requires_grad=True)

        query = draw(queries, 8)
        key = query if shared == "all" else draw(keys, options.get("kdim", 8))
        value = key if shared != "no" else draw(keys, options.get("vdim", 8))
        arguments = _attention_masks(masks, batch if batched else 1, heads, queries, keys)
        if not batched and "key_padding_mask" in arguments:
            arguments["key_padding_mask"] = arguments["key_padding_mask"][0]
        arguments = {
            k: m.double() if isinstance(m, Tensor) and m.is_floating_point() else m for k, m in arguments.items()
        }
        arguments |= {"need_weights": need_weights, "average_attn_weights": average}
        results, strides = [], []
        for layer in (ours, native):
            y, weights = layer(query, key, value, **arguments)
            loss = y.sin().sum() + (weights.cos().sum() if need_weights else 0)
            leaves = [*{id(t): t for t in (query, key, value)}.values(), *layer.parameters()]
            assert (weights is None) == (not need_weights)
            strides.append((y.stride(), weights.stride() if need_weights else None))
            results.append([y, *([weights] if need_weights else []), *torch.autograd.grad(loss, leaves)])
        torch.testing.assert_close(*results)
        assert strides[0] == strides[1]


FAST_PATH_CASES = {
    "taken": ({}, "none"),
    "bool mask": ({}, "bool+padding"),
    "float mask": ({}, "float"),
    "odd heads": ({"heads": 1}, "none"),
    "no bias": ({"bias": False}, "none"),
    "extra keys": ({"add_bias_kv": True}, "none"),
    "zero key": ({"add_zero_attn": True}, "none"),
    "kdim": ({"kdim": 6}, "none"),
    "sequence first": ({"batch_first": False}, "none"),
}


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("kind", FAST_PATH_CASES)
def test_strides_of_evaluation_like_torchs(kind):
    """torch's fast path gives a contiguous [N, L, E], its ordinary path a transposed view."""
    options, masks = FAST_PATH_CASES[kind]
    options = {"batch_first": True, **options}
    heads = options.pop("heads", 2)
    native, ours = (m.eval() for m in pair("MultiheadAttention", (8, heads), options, torch.float64))
    x = torch.randn((3, 4, 8) if options["batch_first"] else (4, 3, 8), dtype=torch.float64)
    key = torch.randn(3, 4, 6, dtype=torch.float64) if "kdim" in options else x
    masks = _attention_masks(masks, 3, heads, 4, 4)
    arguments = {k: m.double() if m.is_floating_point() else m for k, m in masks.items()}
    for grad, shared in itertools.product((False, True), (False, True)):
        with torch.set_grad_enabled(grad):
            outputs = [m(x, key, x if shared else x + 1, **arguments)[0] for m in (ours, native)]
        torch.testing.assert_close(*(y.detach() for y in outputs))
        assert outputs[0].stride() == outputs[1].stride()


@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("need_weights", [False, True])
def test_empty_like_torchs(sizes, need_weights):
    """No batch, no queries, no keys: torch's result, layout and errors, and as few numbers drawn."""
    batch, queries, keys = sizes
    for padded in (False, True):
        results = []
        native, ours = pair("MultiheadAttention", (8, 2), {"batch_first": True, "dropout": 0.5}, torch.float32)
        padding = torch.zeros(batch, keys, dtype=torch.bool) if padded else None
        for layer in (native, ours):
            torch.manual_seed(1)
            key = torch.randn(batch, keys, 8)
            try:
                y, _ = layer(torch.randn(batch, queries, 8), key, key, padding, need_weights)
                results.append((y.shape, y.stride(), y.flatten().tolist(), torch.get_rng_state().tolist()))
            except RuntimeError as error:
                results.append(str(error))
        assert results[0] == results[1]


def test_other_dtypes_are_torchs_own():
    for layer in pair("MultiheadAttention", (8, 2), {}, torch.complex64):
        x = torch.randn(3, 8, dtype=torch.complex64)
        with pytest.raises(AssertionError, match="floating types"):
            layer(x, x, x, attn_mask=torch.zeros(3, 3, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_accuracy(dtype, need_weights):
    native, ours = pair("MultiheadAttention", (32, 4), {"batch_first": True}, dtype)
    wide = copy.deepcopy(native).double()
    x = torch.randn(2, 9, 32, dtype=dtype)
    outputs = [
        layer(t, t, t, need_weights=need_weights)[0] for layer, t in ((ours, x), (native, x), (wide, x.double()))
    ]
    assert_as_accurate(*outputs)


def test_attention_dropout():
    """A dropped weight is 0, a kept one doubled; in eval nothing falls; without weights the seed rules the result."""
    layer = TN.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    x = torch.randn(2, 6, 8)
    _, dropped = layer(x, x, x, average_attn_weights=False)
    _, whole = layer.eval()(x, x, x, average_attn_weights=False)
    assert 0 < (dropped == 0).sum() < dropped.numel()
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, 2 * whole))
    layer.train()
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(layer(x, x, x, need_weights=False)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_attention_all_keys_masked():
    """Native's training semantics, in eval too: 0 before the output projection without weights, NaN with them."""
    native, ours = pair("MultiheadAttention", (8, 2), {"batch_first": True}, torch.float32)
    x, hidden = torch.randn(2, 3, 8), torch.tensor([[True] * 3, [False, False, True]])
    for need_weights in (False, True):
        outputs = [m(x, x, x, key_padding_mask=hidden, need_weights=need_weights)[0] for m in (ours, native)]
        torch.testing.assert_close(*outputs, equal_nan=True)
        with torch.no_grad():
            evaluated = ours.eval()(x, x, x, key_padding_mask=hidden, need_weights=need_weights)[0]
        torch.testing.assert_close(evaluated, outputs[0], equal_nan=True)
        ours.train()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_attention_takes_nested_tensors_as_torch_does():
    native, ours = pair("MultiheadAttention", (8, 2), {"batch_first": True}, torch.float32)
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)])
    with torch.no_grad():
        outputs = [
            m.eval()(nested, nested, nested, need_weights=False)[0].to_padded_tensor(0.0) for m in (ours, native)
        ]
    torch.testing.assert_close(*outputs)


def test_attention_autocast():
    native, ours = pair("MultiheadAttention", (16, 2), {"batch_first": True}, torch.float32)
    x = torch.randn(2, 5, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [m(x, x, x, attn_mask=mask, need_weights=False)[0] for m in (ours, native)]
    reference = copy.deepcopy(native).double()(*[x.double()] * 3, attn_mask=mask.double(), need_weights=False)[0]
    assert_as_accurate(*outputs, reference)

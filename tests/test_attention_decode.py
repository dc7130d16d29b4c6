"""Few queries: keys streamed, or packed once for all heads that share them; any number of rows that share."""

import pytest
import torch

from tilewright.testing import DTYPES

from .attention_cases import MASKS, check, inputs_of, mask_of, run, sdpa

# (batch, heads, key heads, queries, keys, head size, value size): heads / key heads x queries rows share their keys.
_SHARED = [
    *((1, 2 * group, 2, 1, 130, 64, 64) for group in (2, 3, 4, 5, 7, 8, 9, 33, 70)),
    *((2, 3 * queries, 3, queries, 97, 40, 24) for queries in (2, 3, 4)),
    (1, 12, 1, 4, 700, 128, 128),
    (1, 9, 1, 3, 1, 300, 5),
    (1, 5, 1, 2, 31, 7, 257),
]


@pytest.mark.parametrize("kind", [kind for kind in MASKS if kind != "causal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", _SHARED, ids=str)
def test_rows_that_share_keys(isa, shape, dtype, kind):
    # By size, because native's own error over a handful of rows is a matter of luck (a ratio of 2.6 was seen).
    check(inputs_of(shape, dtype), mask_of(kind, shape, dtype), by_size=dtype.itemsize > 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 8, 3, 200, 32, 32), (2, 12, 2, 4, 65, 16, 16)], ids=str)
def test_causal_rows_that_share_keys(isa, shape, dtype):
    check(inputs_of(shape, dtype), None, is_causal=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group", [2, 4, 9])
def test_sharing_drops_the_same_probabilities(isa, dtype, group):
    """The bits belong to (head, query, key), however many heads are computed together."""
    q, k, v = inputs_of((1, 2 * group, 2, 2, 190, 32, 32), dtype)
    repeated = [t.repeat_interleave(group, dim=1) for t in (k, v)]
    outputs = []
    for keys, values in ((k, v), repeated):
        torch.manual_seed(3)
        outputs.append(sdpa(q, keys, values, dropout_p=0.4, enable_gqa=True))
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(*outputs, rtol=tolerance, atol=tolerance)
    torch.manual_seed(4)
    assert not torch.allclose(outputs[0], sdpa(q, k, v, dropout_p=0.4, enable_gqa=True), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [(40, 64, 1), (45, 200, 2), (100, 300, 1), (4, 200, 1), (3, 90, 9), (1, 70, 4)], ids=str
)
def test_keys_behind_the_last_query_are_never_met(isa, dtype, shape):
    """Causal over a longer cache: what lies there, NaN here, reaches neither the output nor a gradient."""
    queries, keys, group = shape
    inputs = inputs_of((1, 2 * group, 2, queries, keys, 48, 48), dtype)
    for t in inputs[1:]:
        t[:, :, queries:] = torch.nan
    grad = torch.randn(1, 2 * group, queries, 48, dtype=dtype)
    options = {"is_causal": True, "enable_gqa": True}
    whole = run(sdpa, inputs, None, grad, **options)
    seen = run(sdpa, [inputs[0], *(t[:, :, :queries] for t in inputs[1:])], None, grad, **options)
    for ours, expected in zip(whole, seen, strict=True):
        torch.testing.assert_close(ours[:, :, :queries], expected)
        assert (ours[:, :, queries:] == 0).all()

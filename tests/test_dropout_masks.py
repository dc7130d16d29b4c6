"""One seed, one mask: on 1 and 2 threads, every ISA, in both memory formats, in every op and its backward."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import philox

LAST = torch.channels_last
P = 0.3
# Enough for a thread team; rows and planes begin inside a group of 8, and no size is a multiple of a vector.
SHAPE = (3, 67, 37, 43)
_REFERENCE: dict[int, Tensor] = {}


def _expected(seed: int) -> Tensor:
    """The reference's mask, made once."""
    if seed not in _REFERENCE:
        _REFERENCE[seed] = philox.keep_mask(seed, P, torch.Size(SHAPE).numel()).view(SHAPE)
    return _REFERENCE[seed]


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# Each gives the dropped tensor itself for a residual of 0, the norm as its second output.
OPS = {
    "dropout": lambda x, zero: TF.dropout(x, P),
    "dropout, inplace": lambda x, zero: TF.dropout(x.clone(memory_format=torch.preserve_format), P, inplace=True),
    "dropout_add": lambda x, zero: TF.dropout_add(x, zero, P),
    "dropout_add, bias": lambda x, zero: TF.dropout_add(x, zero, P, bias=zero[0, 0, 0]),
    "dropout_add_layer_norm": lambda x, zero: TF.dropout_add_layer_norm(x, zero, (SHAPE[-1],), p=P, prenorm=True)[1],
    "dropout_add_layer_norm, no sum": lambda x, zero: TF.dropout_add_layer_norm(x, zero, (SHAPE[-1],), p=P),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("residual_format", [torch.contiguous_format, LAST], ids=["residual NCHW", "residual NHWC"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("op", OPS)
def test_one_mask(isa, threads, op, memory_format, residual_format, dtype):
    torch.manual_seed(5)
    expected = _expected(philox.drawn_seed())
    x = torch.ones(SHAPE, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    zero = torch.zeros(SHAPE, dtype=dtype).contiguous(memory_format=residual_format)
    y = OPS[op](x, zero)
    kept = y > 0  # a dropped element is 0, or after the norm below the mean
    assert torch.equal(kept, expected), f"{(kept != expected).sum()} elements differ"
    if "no sum" in op:  # the gradient of y's sum would be 0
        (dx,) = torch.autograd.grad(y, x, torch.randn(SHAPE, dtype=dtype))
        assert not dx[~expected].any()
        assert dx[expected].count_nonzero() > 0.9 * expected.sum()
    else:
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert torch.equal(dx != 0, expected)

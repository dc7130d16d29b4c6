"""The dropout mask (csrc/common/philox.h) against published vectors and the numpy reference, on every ISA.

As random numbers: test_dropout_statistics.py.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright.functional as TF
from tilewright.testing import available_isas, force_isa, philox

SEED = 0x0123456789ABCDEF
# p = 0.5 compares 16 bits only; 0.3 needs all 32; 2^-33 and 1 - 2^-34 meet the clamp of the threshold.
PROBABILITIES = (0.5, 0.3, 0.1, 1e-3, 2.0**-33, 1 - 2.0**-34, 0.0, 1.0)


def _mask(seed: int, p: float, count: int) -> torch.Tensor:
    return torch.ops.tilewright.dropout_mask(torch.empty(count), torch.tensor([seed]), p)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known-answer vectors of Random123 (kat_vectors, philox4x32 10)
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_reference_gives_the_published_vectors(counter, key, expected):
    assert tuple(philox.philox4x32_10(np.array(counter, dtype=np.uint32), key)) == expected


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("seed", [0, 1, -1, SEED, -(2**63)])
def test_mask_is_the_reference(isa, p, seed):
    # Around one group, one vector of groups, four vectors, and the 2048 elements whose bits are made at a time.
    for count in (1, 7, 8, 9, 31, 64, 65, 255, 256, 257, 1000, 2047, 2048, 2049, 5000):
        assert torch.equal(_mask(seed, p, count), philox.keep_mask(seed, p, count)), count


def test_numbers_equal_to_the_threshold(isa):
    # At 2^20 elements a 16-bit number equals the threshold's upper half about 16 times: the second domain decides.
    count, p = 1 << 20, 0.3
    mask = _mask(SEED, p, count)
    assert torch.equal(mask, philox.keep_mask(SEED, p, count))
    coarse = philox.keep_mask(SEED, (philox.dropout_threshold(p) >> 16) / 2**16, count)
    assert not torch.equal(mask, coarse)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(-(2**63), 2**63 - 1), p=st.floats(0, 1), count=st.integers(0, 3000))
def test_mask_is_the_reference_for_any_seed(seed, p, count):
    expected = philox.keep_mask(seed, p, count)
    for name in available_isas():
        with force_isa(name):
            assert torch.equal(_mask(seed, p, count), expected)


def test_group_index_has_64_bits():
    # The high word of the group index is a counter word of its own: far elements are not those at the start again.
    far = (1 << 35) + 3
    assert not torch.equal(philox.keep_mask(SEED, 0.5, 256, far), philox.keep_mask(SEED, 0.5, 256, 3))
    assert torch.equal(philox.keep_mask(SEED, 0.5, 256, 5), philox.keep_mask(SEED, 0.5, 261)[5:])


def test_seed_comes_from_the_default_generator():
    x = torch.ones(100)
    torch.manual_seed(5)
    first, second = TF.dropout(x), TF.dropout(x)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(TF.dropout(x), first)
    assert torch.equal(TF.dropout(x), second)
    torch.manual_seed(5)
    seed = philox.drawn_seed()
    assert torch.equal(TF.dropout(x) != 0, philox.keep_mask(seed, 0.5, 100))


def test_seed_op():
    torch.library.opcheck(torch.ops.tilewright.dropout_seed.default, (torch.randn(3, 4),))
    seed = torch.ops.tilewright.dropout_seed(torch.randn(2, 2, dtype=torch.bfloat16))
    assert (seed.dtype, seed.shape) == (torch.int64, (1,))


@pytest.mark.parametrize("seed", [torch.tensor([1.0]), torch.tensor([1, 2]), torch.tensor([1], dtype=torch.int32)])
def test_bad_seed(seed):
    with pytest.raises(RuntimeError, match="seed must be one int64"):
        torch.ops.tilewright.dropout_forward(torch.randn(4), seed, 0.5)

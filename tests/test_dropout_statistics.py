"""The dropout mask as random numbers: rates, distributions, independence of neighbours, rows and calls.

Seeds are fixed, so a test passes always or never. Bounds are in standard deviations: 4 for one figure, 5 where the
largest of many counts, both as for numbers that are truly random. That kernels on every ISA and any number of threads
give this mask: test_philox.py, test_dropout_masks.py.
"""

import math

import pytest
import torch
from torch import Tensor

import tilewright  # noqa: F401 - registers the op

SEED = 0x0123456789ABCDEF
PROBABILITIES = (1e-4, 0.01, 0.1, 0.3, 0.5, 0.9, 0.9999)
COUNT = 1 << 20
# Neighbours in a group of 8 and across groups, around vectors and words of bits, rows of models.
LAGS = (*range(1, 17), 31, 32, 33, 63, 64, 65, 128, 256, 333, 768, 1000, 1024, 2047, 2048, 2049, 4096)


def _signed(seed: int) -> int:
    """The same 64 bits as an int64."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def _mask(seed: int, p: float, *shape: int) -> Tensor:
    return torch.ops.tilewright.dropout_mask(torch.empty(shape), torch.tensor([_signed(seed)]), p)


def _scores(mask: Tensor, p: float) -> Tensor:
    """Mean 0 and variance 1 for a mask of the probability p."""
    return (mask.double() - (1 - p)) / math.sqrt(p * (1 - p))


def _correlation(a: Tensor, b: Tensor) -> float:
    """Of scores, in standard deviations."""
    return (a * b).sum().item() / math.sqrt(a.numel())


def _chi_square(observed: Tensor, expected: Tensor, lost: int = 1) -> float:
    """Pearson's statistic in standard deviations (Wilson and Hilferty); `lost` degrees of freedom are not there.

    Cells that expect fewer than ten are counted together.
    """
    rare = expected < 10
    if rare.any():
        observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        if expected[-1] < 10:
            observed, expected = (
                torch.cat([t[:-2], t[-2:].sum()[None]]) if len(t) > 1 else t for t in (observed, expected)
            )
    degrees = len(expected) - lost
    statistic = ((observed - expected).square() / expected).sum().item()
    spread = 2 / (9 * degrees)
    return ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def _binomial(n: int, p: float) -> Tensor:
    """Probabilities of 0 ... n."""
    k = torch.arange(n + 1, dtype=torch.float64)
    choose = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return torch.exp(choose + k * math.log(p) + (n - k) * math.log1p(-p))


def _patterns(bits: Tensor, p: float) -> float:
    """Chi-square of the joint patterns of [n, width] bits that are independent and kept with 1 - p."""
    width = bits.shape[1]
    codes = (bits.long() << torch.arange(width)).sum(1)
    ones = (torch.arange(1 << width)[:, None] >> torch.arange(width) & 1).sum(1)
    expected = len(bits) * (1 - p) ** ones * p ** (width - ones)
    return _chi_square(torch.bincount(codes, minlength=1 << width).double(), expected.double())


# --- rates ---
@pytest.mark.parametrize("p", PROBABILITIES)
def test_keep_rate(p):
    seeds, count = 64, 1 << 17
    scores = torch.stack([_scores(_mask(seed * 7919, p, count), p).sum() for seed in range(seeds)]) / math.sqrt(count)
    assert abs(scores.sum().item()) / math.sqrt(seeds) < 4  # all of them together
    # Each alone; where few are dropped or kept their number is skewed: a Poisson number of mean 13 has a longer tail.
    assert scores.abs().max() < (5 if 0.01 <= p <= 0.9 else 6)
    assert 0.29 < scores.square().mean() < 1.71  # neither too regular: chi-square of 64 within 4 sigma


@pytest.mark.parametrize(
    ("p", "block"), [(1e-4, 1 << 13), (0.01, 256), (0.1, 64), (0.3, 64), (0.5, 64), (0.9, 50), (0.9999, 1 << 13)]
)
def test_kept_in_a_block_are_binomial(p, block):
    kept = torch.cat([_mask(SEED + seed, p, COUNT // block, block).sum(1) for seed in range(4)])
    observed = torch.bincount(kept, minlength=block + 1).double()
    assert abs(_chi_square(observed, len(kept) * _binomial(block, 1 - p))) < 4


# --- one call ---
@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_neighbours_are_independent(p):
    scores = _scores(_mask(SEED, p, COUNT), p)
    found = {lag: _correlation(scores[:-lag], scores[lag:]) for lag in LAGS}
    assert max(found.values(), key=abs) < 5, found
    assert min(found.values()) > -5, found
    assert 0.1 < sum(z * z for z in found.values()) / len(found) < 2  # chi-square of 32 within 4 sigma


@pytest.mark.parametrize("width", [4, 8, 10])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_patterns_of_neighbours(p, width):
    # Within a group of 8, across its end, and in steps of a group, of a vector of groups and of a row.
    mask = _mask(SEED + 1, p, COUNT)
    for start in (0, 2, 6):
        bits = mask[start:]
        assert abs(_patterns(bits[: len(bits) // width * width].view(-1, width), p)) < 4, f"start {start}"
    for step in (8, 64, 768):
        bits = mask[: COUNT // (width * step) * width * step].view(-1, width, step).transpose(1, 2)
        assert abs(_patterns(bits.reshape(-1, width), p)) < 4, f"step {step}"


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_runs(p):
    mask = _mask(SEED + 2, p, COUNT)
    kept = mask.sum().item()
    changes = (mask[1:] != mask[:-1]).nonzero().flatten()
    # Wald and Wolfowitz: how many runs there are among so many kept and dropped.
    mean = 2 * kept * (COUNT - kept) / COUNT + 1
    assert abs(len(changes) + 1 - mean) / ((mean - 1) / math.sqrt(COUNT - 1)) < 4
    # Their lengths: geometric, those of kept and of dropped elements each.
    lengths, first = changes.diff(), int(mask[changes[0] + 1])
    for stays, found in ((1 - p, lengths[1 - first :: 2]), (p, lengths[first::2])):
        at_most = int(math.log(20 / len(found)) / math.log(stays))
        share = stays ** torch.arange(at_most, dtype=torch.float64)
        expected = torch.cat([share * (1 - stays), torch.tensor([stays**at_most])]) * len(found)
        observed = torch.bincount(found.clamp(max=at_most + 1) - 1, minlength=at_most + 1).double()
        assert abs(_chi_square(observed, expected)) < 4, f"stays with {stays}"


@pytest.mark.parametrize("p", [0.01, 0.25, 0.3, 0.5])
def test_positions_of_a_group(p):
    scores = _scores(_mask(SEED + 3, p, COUNT // 8, 8), p)
    assert (scores.sum(0) / math.sqrt(len(scores))).abs().max() < 4
    between = (scores.T @ scores / math.sqrt(len(scores))).fill_diagonal_(0)
    assert between.abs().max() < 5


@pytest.mark.parametrize("shape", [(1024, 1024), (1365, 768), (3148, 333)], ids=str)
@pytest.mark.parametrize("p", [0.3, 0.5])
def test_rows_and_columns_are_independent(p, shape):
    scores = _scores(_mask(SEED + 4, p, *shape), p).float()
    for lines in (scores, scores.T):
        count, length = lines.shape
        between = (lines @ lines.T / math.sqrt(length)).triu(1)
        pairs = count * (count - 1) / 2
        assert between.abs().max() < 6.5  # of up to five million pairs
        assert abs(between.double().sum().item()) / math.sqrt(pairs) < 4
        # Squares have the variance 2 and a little for the fourth moment of a score.
        spread = math.sqrt((2 + ((1 / (p * (1 - p)) - 3) ** 2 - 1) / length) / pairs)
        assert abs(between.double().square().sum().item() / pairs - 1) < 4 * spread


# --- several calls ---
SEEDS = {
    "consecutive": [SEED + i for i in range(64)],
    "small": list(range(64)),
    "one bit differs": [SEED, *(SEED ^ (1 << bit) for bit in range(64))],
    "one bit set": [0, *(1 << bit for bit in range(64))],
    "high words": [i << 32 for i in range(64)],
    "complements": [s for i in range(32) for s in (i * 7919, ~(i * 7919) % (1 << 64))],
}


@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_calls_are_independent(p, kind):
    count = 1 << 16
    masks = torch.stack([_mask(seed, p, count) for seed in SEEDS[kind]])
    scores = _scores(masks, p)
    for shift in (0, 1, 8):  # the same elements, and neighbours in space and in seed at once
        between = scores[:, shift:] @ scores[:, : count - shift].T / math.sqrt(count - shift)
        assert between.fill_diagonal_(0).abs().max() < 5.5, f"shift {shift}"  # of 4096 pairs, in 36 tests
    for i in range(1, len(masks)):  # two neighbours in each of two calls
        pair = torch.cat([masks[i - 1].view(-1, 2), masks[i].view(-1, 2)], 1)
        assert abs(_patterns(pair, p)) < 5, f"calls {i - 1} and {i}"
    four = masks[: len(masks) // 4 * 4].view(-1, 4, count).transpose(1, 2).reshape(-1, 4)
    assert abs(_patterns(four, p)) < 4


@pytest.mark.parametrize("stride", [1, 1 << 32, 0x9E3779B97F4A7C15], ids=["low word", "high word", "both"])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_no_element_is_kept_more_often_than_others(p, stride):
    calls, count = 1024, 4096
    kept = sum(_mask(seed * stride % (1 << 64), p, count).double() for seed in range(calls))
    scores = (kept - calls * (1 - p)) / math.sqrt(calls * p * (1 - p))
    assert scores.abs().max() < 5
    assert abs(scores.square().sum().item() - count) / math.sqrt(2 * count) < 4

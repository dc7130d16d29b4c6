"""A row's norm is the same bits whichever rows are computed beside it, and so for any number of threads."""

import pytest
import torch
from torch import Tensor

from tilewright.testing import DTYPES

ops = torch.ops.tilewright
# Tails of every width, rows of every loop (tiny, short, one by one, four long ones).
COLUMNS = [2, 9, 31, 65, 129, 511, 515, 4099]


@pytest.fixture
def threads():
    """Sets the number of threads, for the test only."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def rows_of_all_kinds(rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    """Some with a poor first estimate of their mean, and a NaN or Inf among the others."""
    x = torch.randn(rows, cols)
    x[::5, : min(cols - 1, 16)] += 1000
    x[3::11, -1] = float("nan")
    x[6::11, 0] = float("inf")
    return x.to(dtype)


def assert_same_bits(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("cols", COLUMNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_norm_row_by_row(isa, dtype, cols, affine):
    x = rows_of_all_kinds(23, cols, dtype)
    weight, bias = (torch.randn(cols, dtype=dtype) if affine else None for _ in range(2))
    whole = ops.layer_norm_forward(x, [cols], weight, bias, 1e-5)
    alone = [ops.layer_norm_forward(row[None], [cols], weight, bias, 1e-5) for row in x]
    assert_same_bits(tuple(torch.cat(parts) for parts in zip(*alone, strict=True)), whole)


@pytest.mark.parametrize("cols", [5, 31, 129, 515])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_add_layer_norm_threads(isa, dtype, cols, threads):
    x, residual = (rows_of_all_kinds(100_000 // cols, cols, dtype) for _ in range(2))
    weight, bias, seed = torch.randn(cols, dtype=dtype), torch.randn(cols, dtype=dtype), torch.tensor([7])
    results = []
    for count in (1, 3):  # a share of rows that begins in the middle of a group of eight elements
        threads(count)
        results.append(ops.dropout_add_layer_norm_forward(x, residual, [cols], weight, bias, 1e-5, seed, 0.3, True))
    assert_same_bits(results[1], results[0])

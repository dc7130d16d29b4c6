"""How a product is cut for threads: a pure function of its shape."""

import itertools

import pytest

from tilewright import _C

SIZES = (1, 7, 64, 100, 384, 1000, 4096, 100_000)
WORTH_A_PART = 1 << 18  # multiplications


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("items", [1, 3, 15, 16, 1000])
def test_parts_are_few_and_none_is_thin(items, packs):
    for rows, cols, depth in itertools.product(SIZES, repeat=3):
        row_parts, col_parts, stretches = _C.split_matmul(items, rows, cols, depth, packs)
        what = f"{items}x{rows}x{depth}x{cols}: {row_parts}, {col_parts}, {stretches}"
        assert min(row_parts, col_parts, stretches) >= 1, what
        assert row_parts == 1 or rows // row_parts >= 28, what
        assert col_parts == 1 or cols // col_parts >= 32, what
        assert stretches == 1 or depth // stretches >= 256, what
        parts = row_parts * col_parts * stretches
        assert parts == 1 or rows * cols * depth // parts >= WORTH_A_PART // 4, what
        assert items * parts <= max(items, 64), what


@pytest.mark.parametrize("packs", [False, True])
def test_large_work_is_shared(packs):
    for rows, cols, depth in itertools.product(SIZES, repeat=3):
        cuts = rows >= 128 or cols >= 128 or depth >= 16 * max(rows, cols, 128)
        if cuts and rows * cols * depth >= 16 * WORTH_A_PART:
            row_parts, col_parts, stretches = _C.split_matmul(1, rows, cols, depth, packs)
            assert row_parts * col_parts * stretches >= 2, f"{rows}x{depth}x{cols}"


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((1, 64, 64, 4096), (1, 1, 8)),  # few rows and columns: along K
        ((1, 512, 512, 512), (8, 2, 1)),  # a part of the columns packs its own block
        ((64, 128, 128, 64), (1, 1, 1)),  # enough items
        ((1, 32, 32, 32), (1, 1, 1)),  # not worth a thread
    ],
)
def test_known_cuts(shape, parts):
    assert _C.split_matmul(*shape, packs=True) == parts

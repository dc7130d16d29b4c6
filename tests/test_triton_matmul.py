"""Index maths and configurations of the Triton products, exhaustively and without running a kernel."""

from itertools import product as pairs
from math import prod

import pytest
import torch

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from tilewright.triton import linear, matmul, matmul_product, variants
from tilewright.triton.matmul_config import (
    TILES,
    cdiv,
    choose,
    split_range,
    tile_position,
)
from tilewright.triton.matmul_kernel import CONTIGUOUS, DESCRIPTOR, GROUP, STRIDED, VECTOR
from tilewright.triton.matmul_operands import Flat, Operand, Product, flatten, matrix

SIZES = (1, 7, 16, 17, 33, 64, 128, 197, 512, 1000, 4096, 50257)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("group", [1, 3, GROUP])
def test_tile_order_is_a_permutation(group):
    for tiles_m, tiles_n in pairs(range(1, 20), range(1, 12)):
        found = [tile_position(tile, tiles_m, tiles_n, group) for tile in range(tiles_m * tiles_n)]
        assert sorted(found) == list(pairs(range(tiles_m), range(tiles_n)))


def test_splits_are_a_partition():
    for steps in range(1, 200):
        for splits in range(1, 40):
            found = [step for split in range(splits) for step in split_range(split, splits, steps)]
            assert found == list(range(steps))


def _plans(architecture: int):
    layouts = (
        {STRIDED},
        {STRIDED, CONTIGUOUS},
        {STRIDED, CONTIGUOUS, VECTOR},
        {STRIDED, CONTIGUOUS, DESCRIPTOR},
        {STRIDED, CONTIGUOUS, VECTOR, DESCRIPTOR},
    )
    for M, N, K in pairs(SIZES, SIZES, (0, *SIZES[::2], 2**20)):
        for batch, dtype, accesses in pairs((1, 96), (torch.float32, torch.float16), layouts):
            if architecture < 90 and DESCRIPTOR in accesses:
                continue
            for a_along_k, vector_output in ((True, True), (False, False)):
                options = {"a_along_k": a_along_k, "vector_output": vector_output, "allow_tf32": vector_output}
                yield (
                    (M, N, K, batch, dtype, accesses, a_along_k, vector_output),
                    choose.__wrapped__(M, N, K, batch, 1, dtype, architecture, accesses=frozenset(accesses), **options),
                )


@pytest.mark.parametrize("architecture", variants.ARCHITECTURES)
def test_every_shape_has_a_plan_that_covers_it(architecture):
    reached = set()
    for (M, N, K, _, dtype, accesses, a_along_k, vector_output), plan in _plans(architecture):
        tile = plan.tile
        reached.add(tile)
        assert tile.access in accesses
        assert tile.kind == "half" or dtype == torch.float32
        assert tile.max_m is None or tile.max_m >= M
        assert tile.access == STRIDED or a_along_k in tile.a_along_k
        assert tile.any_layout or (vector_output and plan.splits == 1)
        # Tiles cover C once and leave none empty; no split is without a step.
        assert cdiv(M, tile.M) * tile.M >= M > (cdiv(M, tile.M) - 1) * tile.M
        assert cdiv(N, tile.N) * tile.N >= N > (cdiv(N, tile.N) - 1) * tile.N
        steps = cdiv(K, tile.K)
        assert plan.splits == 1 or all(split_range(s, plan.splits, steps) for s in (0, plan.splits - 1))
    assert not set(TILES[architecture]) - reached, "tiles that no shape takes"


@pytest.mark.parametrize("architecture", variants.ARCHITECTURES)
def test_stages_fit_shared_memory(architecture):
    for tile in TILES[architecture]:
        used = tile.resident * tile.shared_memory(2 if tile.kind == "half" else 4)
        assert used <= variants.SHARED_MEMORY[architecture], tile


@pytest.mark.parametrize("family", [matmul, linear])
@pytest.mark.parametrize("architecture", variants.ARCHITECTURES)
def test_variants_are_listed_once(family, architecture):
    listed = family.variants(architecture)
    assert len(set(listed)) == len(listed) <= 105


def test_large_products_take_large_tiles():
    plan = choose(8192, 8192, 8192, 1, 1, torch.bfloat16, 90)
    assert (plan.tile.M, plan.tile.N, plan.splits) == (128, 256, 1)
    assert choose(1, 4096, 16384, 1, 1, torch.bfloat16, 90).tile.M == 16
    assert choose(1, 4096, 16384, 1, 1, torch.bfloat16, 90).splits > 1, "decode fills the card"
    assert choose(64, 64, 100000, 1, 1, torch.bfloat16, 90).splits > 16, "so does a weight gradient"
    assert choose(32, 32, 32, 4096, 1, torch.float16, 80).tile.M == 32


def test_large_products_of_odd_rows_are_copied_for_tma():
    def copies(M: int, N: int, K: int, dtype: torch.dtype, architecture: int = 90) -> tuple[bool, bool]:
        left, right = torch.empty(M, K, dtype=dtype, device="meta"), torch.empty(K, N, dtype=dtype, device="meta")
        out = torch.empty(M, N, dtype=dtype, device="meta")
        product = Product(M, N, K, [], [], *(matrix(t, 0) for t in (left, right, out)))
        return matmul_product._recipe(product.layout, dtype, architecture, False).copies

    half = torch.bfloat16
    assert copies(4097, 4097, 4097, half) == (True, True)
    assert copies(8192, 768, 50257, half) == (True, False)
    assert copies(8192, 50257, 768, half) == (False, True)
    assert copies(7, 4095, 4095, half) == copies(4095, 7, 4095, half) == (False, False), "memory's time"
    assert copies(4096, 4096, 4096, half) == (False, False)
    assert copies(4097, 4097, 4097, half, 80) == (False, False), "no TMA"
    assert copies(4097, 4097, 4097, torch.float32) == (False, False), "no tensor cores"


def _flat(left: torch.Tensor, right: torch.Tensor) -> Flat | None:
    shape = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    dims = len(shape)
    out = torch.empty(*shape, left.shape[-2], right.shape[-1])
    a, b, c = matrix(left, dims), matrix(right, dims, is_left=False), matrix(out, dims)
    M, N, K = left.shape[-2], right.shape[-1], left.shape[-1]
    return flatten(Product(M, N, K, list(shape), [False] * dims, a, b, c).layout)


def test_dimensions_are_joined():
    flat = _flat(torch.empty(2, 3, 4, 5, 6), torch.empty(6, 7))
    assert (flat.M, flat.kept) == (2 * 3 * 4 * 5, []), "all leading dimensions are rows"
    flat = _flat(torch.empty(2, 3, 4, 5, 6), torch.empty(2, 3, 4, 6, 7))
    assert [size for size, _ in flat.kept] == [24]
    flat = _flat(torch.empty(2, 5, 3, 6).transpose(1, 2), torch.empty(2, 3, 6, 7))
    assert [size for size, _ in flat.kept] == [2, 3], "heads beside positions"
    assert _flat(torch.empty(2, 1, 2, 1, 2, 3, 4), torch.empty(1, 2, 1, 2, 1, 4, 5)) is None


def test_a_reduced_batch_becomes_depth():
    x, dy = torch.empty(6, 5, 4), torch.empty(6, 5, 3)
    c = Operand(torch.empty(4, 3), 3, 1, [0])
    flat = flatten(Product(4, 3, 5, [6], [True], matrix(x, 1).turned(), matrix(dy, 1), c).layout)
    assert (flat.K, flat.reduced[0]) == (30, 1)


def _specialization(variant: variants.Variant, arguments: dict) -> tuple[dict[str, str], dict[str, object]]:
    """(types, what they are specialised on) that Triton's launcher computes from the arguments, on sm_90."""
    kernel = variant.kernel
    binder = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
    _, found, _ = binder(**arguments, **dict(variant.constants))
    names = [parameter.name for parameter in kernel.params]
    constants = dict(variant.constants)
    types = {name: kind for name, (kind, _) in zip(names, found, strict=True) if name not in constants}
    special = {name: value for name, (_, value) in zip(names, found, strict=True) if name not in constants and value}
    return types, special


@pytest.mark.parametrize("architecture", [80, 90])
def test_launches_compile_nothing_unlisted(architecture, monkeypatch):
    """The signature Triton computes at run time is the listed one, whatever sizes, strides and alignment say."""
    launched = []

    def launch(variant: variants.Variant, grid: tuple[int, ...], arguments: dict) -> None:
        types, special = _specialization(variant, arguments)
        assert types == dict(variant.signature)
        assert not special
        assert prod(grid) > 0
        launched.append(variant)

    for module in (matmul_product, linear):
        monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(variants, "INTERPRETED_ARCHITECTURE", architecture)
    forward = matmul.implementations["matmul_forward"]
    for dtype in DTYPES:
        for rows, depth, cols in (
            (1, 1, 1),
            (16, 16, 16),
            (17, 33, 5),
            (256, 128, 512),
            (1, 8192, 64),
            (2048, 64, 2048),
        ):
            left, right = torch.zeros(rows, depth, dtype=dtype), torch.zeros(depth, cols, dtype=dtype)
            forward(left, right)
            forward(left, torch.zeros(cols, depth, dtype=dtype).T)
            forward(torch.zeros(depth, rows, dtype=dtype).T, right)
            bias = torch.zeros(rows * 2 + 1, dtype=dtype)[1::2]
            linear.implementations["linear_forward"](right.T, left, bias, "gelu", True)
            linear.implementations["linear_backward"](
                left, torch.zeros(rows, cols, dtype=dtype), right.T[:depth], (False, True, True)
            )
    assert len(set(launched)) > 20
    assert set(launched) <= set(linear.variants(architecture))

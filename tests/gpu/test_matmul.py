"""matmul, bmm and baddbmm on the GPU against float64 math and native."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import assert_as_accurate, max_error
from tilewright.triton import matmul_product, variants
from tilewright.triton.matmul_config import TILES, Plan, Tile, choose
from tilewright.triton.matmul_kernel import CONTIGUOUS, DESCRIPTOR, STRIDED, VECTOR


@contextmanager
def _only(tile: Tile | None, splits: int = 1) -> Iterator[None]:
    """Products take this tile (None: the one chosen) and so many splits."""

    def chosen(*shape, **options):
        plan = choose(*shape, **options)
        return Plan(tile or plan.tile, splits, 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul_product, "choose", chosen)
        patch.setattr(matmul_product, "_recipe", matmul_product._recipe.__wrapped__)
        yield


def _assert_matches(ours: Tensor, native: Tensor, left: Tensor, right: Tensor, what: str) -> None:
    """The accuracy bar, but never below the error that any order of summation may have: K roundings of |a| |b|."""
    reference = torch.matmul(left.double(), right.double())
    assert ours.stride() == native.stride(), what
    bound = torch.matmul(left.double().abs(), right.double().abs()) * left.shape[-1] ** 0.5 * 2.0**-23
    inside = (ours.double() - reference).abs() <= bound
    assert_as_accurate(torch.where(inside, reference.to(ours.dtype), ours), native, reference, what=what)


def _matrix(rows: int, cols: int, is_turned: bool, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if is_turned:
        return torch.randn(batch, cols, rows, device=device).to(dtype).mT
    return torch.randn(batch, rows, cols, device=device).to(dtype)


def _shape(tile: Tile) -> tuple[int, int, int]:
    """Two tiles in each direction and three steps of K, the last ones partial."""
    odd = tile.access in (CONTIGUOUS, STRIDED)
    rows = 13 if tile.max_m else tile.M + 24
    return (rows - (rows % 8 if not odd else 0), tile.N + 40 - odd, 2 * tile.K + 8 - odd)


@pytest.fixture
def _tf32_allowed() -> Iterator[None]:
    """For native as well."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    yield
    matmul.fp32_precision = before


# What was compared in this process: of the tables that the interpreter takes in turn, most tiles are in both.
_compared: set[variants.Variant] = set()


@pytest.mark.usefixtures("_tf32_allowed")
def test_every_tile_and_layout(table, device, gpu_dtypes):
    reached = set()
    for tile in TILES[table]:
        rows, cols, depth = _shape(tile)
        for dtype in gpu_dtypes:
            if (dtype == torch.float32) != (tile.kind != "half"):
                continue
            for a_along_k, b_along_k in tile.layouts:
                variant = matmul_product.product_variant(tile, dtype, a_along_k, b_along_k)
                reached.add(variant)
                if variant in _compared:
                    continue
                rows_here = 8 * (not a_along_k) or rows if tile.max_m else rows
                a = _matrix(rows_here, depth, not a_along_k, 2, dtype, device)
                b = _matrix(depth, cols, b_along_k, 2, dtype, device)
                with _only(tile), variants.observed() as seen:
                    ours = TF.bmm(a, b)
                assert seen == [variant]
                _assert_matches(ours, torch.bmm(a, b), a, b, variant.name)
                _compared.add(variant)
    listed = {v for v in matmul_product.product_variants(table) if v.kernel is matmul_product.kernel.product}
    assert {v for v in listed if "bf16" not in v.name or device.type == "cuda"} == reached


@pytest.mark.parametrize("splits", [2, 3])
def test_splits_are_summed_and_finished(table, device, gpu_dtypes, splits):
    for tile in (t for t in TILES[table] if t.any_layout and t.max_m is None and t.kind != "tf32"):
        odd = tile.access in (CONTIGUOUS, STRIDED)
        for dtype in gpu_dtypes:
            if (dtype == torch.float32) != (tile.kind == "ieee"):
                continue
            a = torch.randn(1, 24, 5 * tile.K - odd, device=device).to(dtype)
            b = torch.randn(1, 5 * tile.K - odd, 40, device=device).to(dtype)
            extra = torch.randn(40, device=device).to(dtype)
            with _only(tile, splits), variants.observed() as seen:
                ours = TF.baddbmm(extra, a, b, beta=2, alpha=0.5)
            assert seen[1:] == [matmul_product.split_variant(dtype)]
            left = torch.cat([0.5 * a, torch.ones_like(a[..., :1])], 2)
            right = torch.cat([b, 2 * extra.expand(1, 1, 40)], 1)
            _assert_matches(ours, torch.baddbmm(extra, a, b, beta=2, alpha=0.5), left, right, str(tile))


RANKS = {
    "vector vector": ((70,), (70,)),
    "vector matrix": ((40,), (40, 50)),
    "matrix vector": ((50, 40), (40,)),
    "vector batch": ((7,), (2, 3, 7, 5)),
    "batch vector": ((2, 3, 5, 7), (7,)),
    "batch matrix": ((2, 3, 17, 9), (9, 18)),
    "matrix batch": ((17, 9), (3, 9, 18)),
    "left broadcast": ((2, 1, 17, 9), (3, 9, 18)),
    "both broadcast": ((2, 1, 4, 7), (1, 3, 7, 5)),
    "every other broadcast": ((2, 1, 2, 1, 4, 7), (1, 2, 1, 3, 7, 5)),
    "three dimensions broadcast": ((2, 1, 3, 4, 7), (2, 2, 1, 7, 5)),
    "one by one": ((1, 1), (1, 1)),
    "primes": ((37, 41), (41, 43)),
    "outer": ((19, 1), (1, 23)),
}


@pytest.mark.parametrize("kind", RANKS)
def test_ranks_and_gradients(table, device, gpu_dtypes, kind):
    for dtype in gpu_dtypes:
        left, right = (torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in RANKS[kind])
        with variants.observed() as seen:
            ours = TF.matmul(left, right)
            dy = torch.randn_like(ours)
            grads = torch.autograd.grad(ours, (left, right), dy)
        assert len(seen) >= 3
        native = torch.matmul(left, right)
        assert_as_accurate(ours, native, torch.matmul(left.double(), right.double()), what=kind)
        exact = [t.detach().double().requires_grad_() for t in (left, right)]
        expected = torch.autograd.grad(torch.matmul(*exact), exact, dy.double())
        natives = torch.autograd.grad(native, (left, right), dy)
        for grad, other, reference in zip(grads, natives, expected, strict=True):
            assert grad.is_contiguous(), "as the fake kernel says"
            assert_as_accurate(grad, other, reference, what=f"{kind} {dtype} gradient")


def _views(device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    def make(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    return {
        "both transposed": (make(3, 24, 40).mT, make(3, 48, 24).mT),
        "right expanded": (make(3, 18, 20), make(20, 40).expand(3, 20, 40)),
        "left expanded": (make(18, 20).expand(3, 18, 20), make(3, 20, 40)),
        "rows expanded": (make(1, 24).expand(40, 24), make(24, 40)),
        "stride 0 along depth": (make(3, 18, 1).expand(3, 18, 20), make(3, 20, 40)),
        "every other": (make(2, 36, 40)[:, ::2, ::2], make(2, 40, 80)[:, ::2, ::2]),
        "heads": (make(2, 18, 4, 16).transpose(1, 2), make(2, 4, 16, 40)),
        "heads of both": (make(2, 24, 3, 16).transpose(1, 2), make(2, 40, 3, 16).transpose(1, 2).mT),
        "permuted against a matrix": (make(18, 5, 20).transpose(0, 1), make(20, 40)),
        "many rows, permuted, against a matrix": (make(70, 2, 20).transpose(0, 1), make(20, 40)),
        "offset": (make(18 * 20 + 1)[1:].view(18, 20), make(20 * 40 + 3)[3:].view(20, 40)),
        "narrowed rows": (make(24, 64)[:, :24], make(24, 64)[:, 8:48]),
        "unaligned rows": (make(24, 33)[:, :24], make(24, 41)[:, :40]),
        "few columns": (make(70, 24), make(24, 5)),
    }


@pytest.mark.parametrize("kind", _views(torch.device("cpu")))
def test_strided_operands_and_gradients(table, device, gpu_dtypes, kind):
    for dtype in gpu_dtypes:
        left, right = (
            torch.empty_strided(t.shape, t.stride(), dtype=dtype, device=device).copy_(t)
            if 0 not in t.stride()
            else t.to(dtype)
            for t in _views(device)[kind]
        )
        _assert_matches(TF.matmul(left, right), torch.matmul(left, right), left, right, f"{kind} {dtype}")
        dy = torch.randn(torch.matmul(left, right).shape, device=device).to(dtype)
        left, right = left.detach().requires_grad_(), right.detach().requires_grad_()
        grads = torch.autograd.grad(TF.matmul(left, right), (left, right), dy)
        natives = torch.autograd.grad(torch.matmul(left, right), (left, right), dy)
        exact = [t.detach().double().requires_grad_() for t in (left, right)]
        expected = torch.autograd.grad(torch.matmul(*exact), exact, dy.double())
        for grad, other, reference in zip(grads, natives, expected, strict=True):
            assert_as_accurate(grad, other, reference, what=f"{kind} {dtype} gradient")


def test_aligned_and_unaligned_paths(table, device):
    """16 bytes at a time where alignment allows (by TMA on Hopper's tables), single elements where not."""

    def access(rows: int, depth: int, cols: int) -> int:
        a, b = torch.randn(rows, depth, device=device).half(), torch.randn(depth, cols, device=device).half()
        with variants.observed() as seen:
            _assert_matches(TF.matmul(a, b), torch.matmul(a, b), a, b, f"{rows} {depth} {cols}")
        return dict(seen[0].constants)["ACCESS"]

    assert access(200, 72, 136) in ((DESCRIPTOR, VECTOR) if table >= 90 else (VECTOR,))
    assert access(199, 71, 135) in (CONTIGUOUS, STRIDED)
    assert access(5, 72, 136) == VECTOR


@pytest.mark.parametrize("shapes", [((40, 39), (39, 50)), ((3, 40, 39), (39, 41)), ((2, 1, 17, 9), (3, 9, 18))])
def test_copies_with_aligned_rows(table, device, shapes, monkeypatch):
    """What a large product of odd row lengths takes for TMA's sake, forced upon small ones."""
    large = [tile for tile in TILES[table] if (tile.M, tile.access) == (64, DESCRIPTOR)]

    def chosen(*shape, **options):
        return Plan(large[0], 1, 0.0) if DESCRIPTOR in options["accesses"] else choose(*shape, **options)

    monkeypatch.setattr(matmul_product, "choose", chosen)
    monkeypatch.setattr(matmul_product, "_COPIES_GAIN", float("inf"))
    monkeypatch.setattr(matmul_product, "_recipe", matmul_product._recipe.__wrapped__)
    left, right = (torch.randn(shape, device=device).half() for shape in shapes)
    for a, b in ((left, right), (left, right.mT.contiguous().mT), (left.mT.contiguous().mT, right)):
        with variants.observed() as seen:
            _assert_matches(TF.matmul(a, b), torch.matmul(a, b), a, b, f"{a.stride()} {b.stride()}")
        assert (dict(seen[0].constants)["ACCESS"] == DESCRIPTOR) == (table >= 90)


@pytest.mark.parametrize("kind", ["whole", "row", "column", "matrix", "transposed", "scalar", "odd"])
def test_baddbmm(table, device, gpu_dtypes, kind):
    cols = 39 if kind == "odd" else 40
    shapes = {"row": (cols,), "column": (24, 1), "matrix": (24, cols), "scalar": ()}
    for dtype in gpu_dtypes:
        a, b = torch.randn(3, 24, 16, device=device).to(dtype), torch.randn(3, 16, cols, device=device).to(dtype)
        extra = torch.randn(shapes.get(kind, (3, 24, cols)), device=device).to(dtype)
        if kind == "transposed":
            extra = extra.mT.contiguous().mT
        inputs = [t.requires_grad_() for t in (extra, a, b)]
        ours, native = (f.baddbmm(*inputs, beta=1.5, alpha=0.5) for f in (TF, torch))
        exact = [t.detach().double().requires_grad_() for t in inputs]
        reference = torch.baddbmm(*exact, beta=1.5, alpha=0.5)
        assert_as_accurate(ours, native, reference.detach(), what=kind)
        dy = torch.randn_like(native)
        grads = (torch.autograd.grad(*pair) for pair in ((ours, inputs, dy), (native, inputs, dy)))
        expected = torch.autograd.grad(reference, exact, dy.double())
        for grad, other, wanted in zip(*grads, expected, strict=True):
            assert_as_accurate(grad, other, wanted, what=f"{kind} gradient")


def test_beta_zero_ignores_the_input(table, device):
    a, b = torch.randn(2, 20, 24, device=device), torch.randn(2, 24, 40, device=device)
    ours = TF.baddbmm(torch.full((40,), torch.nan, device=device), a, b, beta=0)
    assert_as_accurate(ours, torch.bmm(a, b), torch.bmm(a.double(), b.double()))


def test_nan_and_inf_stay_in_their_rows(table, device):
    a, b = torch.randn(40, 24, device=device), torch.randn(24, 48, device=device)
    a[3, 5], a[17, 2] = torch.nan, torch.inf
    ours, reference = TF.matmul(a, b), torch.matmul(a.double(), b.double())
    assert ours[3].isnan().all()
    assert ours[17].isinf().all()
    assert max_error(ours, reference) < 1e-4


def test_no_depth_gives_zeros_or_the_input(table, device):
    left, right = torch.empty(20, 0, device=device), torch.empty(0, 5, device=device)
    assert torch.equal(TF.matmul(left, right).cpu(), torch.zeros(20, 5))
    extra = torch.randn(2, 20, 5, device=device)
    ours = TF.baddbmm(extra, torch.empty(2, 20, 0, device=device), torch.empty(2, 0, 5, device=device), beta=2)
    assert torch.equal(ours, 2 * extra)


def test_wrong_shapes_and_dtypes(device):
    a = torch.randn(4, 5, device=device)
    with pytest.raises(RuntimeError, match="must equal other's second to last"):
        torch.ops.tilewright.matmul_forward(a, a)
    with pytest.raises(RuntimeError, match="same dtype"):
        torch.ops.tilewright.matmul_forward(a, a.half().T)
    with pytest.raises(RuntimeError, match="must broadcast"):
        torch.ops.tilewright.matmul_forward(torch.randn(2, 4, 5, device=device), torch.randn(3, 5, 4, device=device))
    with pytest.raises(RuntimeError, match="grad_output must have shape"):
        torch.ops.tilewright.matmul_backward(a, a, a, [4, 5], [5, 4], 1, [True, True])
    with pytest.raises(RuntimeError, match="must be 3-D"):
        torch.ops.tilewright.baddbmm_forward(a, a[None], a[None, None], 1, 1)

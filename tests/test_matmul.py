"""matmul, bmm and baddbmm against float64 math and against native."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import DTYPES, assert_as_accurate, available_isas, ops_called

# Twice the tallest register tile and one more: every row tail, the few-row paths (up to 16), the tile path behind them.
ROWS = (*range(1, 18), 21, 27, 28, 29)
# One lane, around vectors and panels of every ISA.
COLS = (1, 3, 4, 8, 9, 15, 16, 17, 31, 32, 33, 65)


def _assert_matches(ours: Tensor, native: Tensor, left: Tensor, right: Tensor, what: str) -> None:
    """The accuracy bar, but never below the error that any order of summation may have: K roundings of |a| |b|."""
    reference = torch.matmul(left.double(), right.double())
    assert ours.shape == native.shape, what
    assert ours.stride() == native.stride(), what
    accumulation = 2.0**-53 if ours.dtype == torch.float64 else 2.0**-24
    bound = torch.matmul(left.double().abs(), right.double().abs()) * left.shape[-1] ** 0.5 * 2 * accumulation
    # A difference inside the bound is not counted; what is left must be native's.
    inside = (ours.double() - reference).abs() <= bound
    assert_as_accurate(torch.where(inside, reference.to(ours.dtype), ours), native, reference, what=what)


def _layouts(rows: int, cols: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"plain": torch.randn(rows, cols, dtype=dtype), "transposed": torch.randn(cols, rows, dtype=dtype).T}


def _right_layouts(rows: int, cols: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Beside those one without a contiguous dimension, which only register tiles take: each of them alone, 1 row up."""
    return {**_layouts(rows, cols, dtype), "strided": torch.randn(2 * rows, 2 * cols, dtype=dtype)[::2, ::2]}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [1, 33])
def test_every_row_and_column_tail(isa, dtype, depth):
    for rows in ROWS:
        for cols in COLS:
            for a_name, a in _layouts(rows, depth, dtype).items():
                for b_name, b in _right_layouts(depth, cols, dtype).items():
                    what = f"{rows}x{depth}x{cols} {a_name} {b_name}"
                    _assert_matches(TF.matmul(a, b), torch.matmul(a, b), a, b, what)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 800, 70), (5, 1151, 33), (17, 385, 401), (61, 1021, 127), (64, 384, 64), (64, 768, 64), (1100, 390, 35)],
)
def test_several_blocks(isa, dtype, shape):
    rows, depth, cols = shape
    for a in _layouts(rows, depth, dtype).values():
        for b in _layouts(depth, cols, dtype).values():
            _assert_matches(TF.matmul(a, b), torch.matmul(a, b), a, b, str(shape))


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("depth", [2, 63, 64, 800, 1151])
def test_bfloat16_in_place_and_copied(isa, depth, transposed):
    """Pairs along K: even and odd depth, rows at even, odd and aliasing distances, one block of K and several."""
    for rows, cols, pad in [(20, 40, 0), (20, 40, 1), (33, 77, 2), (40, 130, 1024 - depth % 1024)]:
        left, right = [(rows, depth), (depth, cols)]
        sizes = [size[::-1] if swap else size for size, swap in zip((left, right), transposed, strict=True)]
        a, b = (torch.randn(m, n + pad).bfloat16()[:, :n] for m, n in sizes)
        a, b = a.t() if transposed[0] else a, b.t() if transposed[1] else b
        assert_as_accurate(TF.matmul(a, b), a @ b, a.double() @ b.double(), what=f"{rows}x{depth}x{cols} + {pad}")


@pytest.mark.skipif("avx512_bf16" not in available_isas(), reason="this machine multiplies no bfloat16")
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_bfloat16_denormals_like_native(rows):
    """Processors that multiply bfloat16 take them for 0; native keeps them for one row only, and so do we."""
    tiny = torch.full((rows, 64), 1e-39).bfloat16()
    weight = torch.ones(48, 64).bfloat16()
    torch.testing.assert_close(TF.linear(tiny, weight), torch.nn.functional.linear(tiny, weight), rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(64, 4096, 64), (5, 70000, 9), (1, 600000, 1), (33, 5001, 40)])
def test_long_depth_is_summed_in_stretches(isa, dtype, shape):
    rows, depth, cols = shape
    extra = torch.randn(2, rows, cols, dtype=dtype)
    for a in _layouts(rows, depth, dtype).values():
        for b in _layouts(depth, cols, dtype).values():
            _assert_matches(TF.matmul(a, b), torch.matmul(a, b), a, b, str(shape))
            batch = a.expand(2, rows, depth), b.expand(2, depth, cols)
            ours, native = (f.baddbmm(extra, *batch, beta=2, alpha=0.5) for f in (TF, torch))
            # The addend is a product with ones, further down the same sum.
            left = torch.cat([0.5 * batch[0], 2 * extra], 2)
            right = torch.cat([batch[1], torch.eye(cols, dtype=dtype).expand(2, cols, cols)], 1)
            _assert_matches(ours, native, left, right, f"baddbmm {shape}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_long_sums_of_outer_products(isa, dtype):
    """Both operands contiguous across K: read in place, the last panel too where it is whole vectors."""
    for rows in (9, 14, 29):
        for cols in (8, 15, 16, 17, 24, 33, 65):
            left, right = torch.randn(1031, rows, dtype=dtype), torch.randn(1031, cols, dtype=dtype)
            _assert_matches(TF.matmul(left.T, right), torch.matmul(left.T, right), left.T, right, f"{rows}x{cols}")
    # Summed over batches that don't follow each other in memory, too.
    left, grad = torch.randn(3, 1100, 20, dtype=dtype)[:, :1030], torch.randn(3, 1030, 24, dtype=dtype)
    weights = [torch.randn(20, 24, dtype=dtype).requires_grad_() for _ in range(2)]
    for product, weight in zip((TF.matmul, torch.matmul), weights, strict=True):
        product(left, weight).backward(grad)
    ours, native = (weight.grad for weight in weights)
    _assert_matches(ours, native, left.reshape(-1, 20).T, grad.reshape(-1, 24), "summed over batches")


@pytest.mark.parametrize("rows", [3, 40])
def test_16_bit_depth_blocks_do_not_round_in_between(rows):
    a = torch.full((rows, 2048), 1.0, dtype=torch.bfloat16)
    b = torch.full((2048, 40), 2.0**-9, dtype=torch.bfloat16)
    a[:, 0], b[0] = 256.0, 1.0  # 256 + 2047 / 512: rounding after each block would lose every addition below 1
    expected = torch.full((rows, 40), 256 + 2047 / 512, dtype=torch.float64).to(torch.bfloat16)
    assert torch.equal(TF.matmul(a, b), expected)
    assert torch.equal(TF.matmul(a, b.T.contiguous().T), expected)


SHAPES = {
    "vector vector": ((7,), (7,)),
    "vector matrix": ((7,), (7, 5)),
    "matrix vector": ((5, 7), (7,)),
    "vector batch": ((7,), (2, 3, 7, 5)),
    "batch vector": ((2, 3, 5, 7), (7,)),
    "matrix batch": ((4, 7), (3, 7, 5)),
    "batch matrix": ((2, 3, 4, 7), (7, 5)),
    "batch batch": ((2, 3, 4, 7), (2, 3, 7, 5)),
    "left broadcast": ((2, 1, 4, 7), (3, 7, 5)),
    "both broadcast": ((2, 1, 4, 7), (1, 3, 7, 5)),
    "ones": ((1, 1, 1, 1), (1, 1)),
    "one row in batches": ((6, 1, 7), (7, 5)),
    "no depth": ((3, 0), (0, 4)),
    "no depth in batches": ((2, 3, 0), (2, 0, 4)),
    "no rows": ((0, 3), (3, 4)),
    "no columns": ((2, 3), (3, 0)),
    "no batch": ((0, 2, 3), (0, 3, 4)),
    "no batch against one": ((0, 2, 3), (3, 4)),
    "empty vectors": ((0,), (0,)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_ranks_and_gradients(isa, kind):
    left, right = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in SHAPES[kind])
    ours, native = TF.matmul(left, right), torch.matmul(left, right)
    torch.testing.assert_close(ours, native)
    assert ours.stride() == native.stride()
    dy = torch.randn_like(native)
    grads = torch.autograd.grad(ours, (left, right), dy), torch.autograd.grad(native, (left, right), dy)
    torch.testing.assert_close(*grads)
    for wanted in (left, right):
        other = right if wanted is left else left
        alone = TF.matmul(*(t if t is wanted else t.detach() for t in (left, right)))
        torch.testing.assert_close(torch.autograd.grad(alone, wanted, dy)[0], grads[1][0 if other is right else 1])


def _views() -> dict[str, tuple[Tensor, Tensor]]:
    make = torch.randn
    return {
        "both transposed": (make(3, 20, 18).mT, make(3, 40, 20).mT),
        "right expanded": (make(5, 18, 20), make(20, 40).expand(5, 20, 40)),
        "left expanded": (make(18, 20).expand(5, 18, 20), make(5, 20, 40)),
        "stride 0 along depth": (make(5, 18, 1).expand(5, 18, 20), make(5, 20, 40)),
        "stride 0 along columns": (make(5, 18, 20), make(5, 20, 1).expand(5, 20, 40)),
        "every other": (make(5, 36, 40)[:, ::2, ::2], make(5, 40, 80)[:, ::2, ::2]),
        "heads": (make(2, 18, 4, 20).transpose(1, 2), make(2, 4, 20, 40)),
        "permuted against a matrix": (make(18, 5, 20).transpose(0, 1), make(20, 40)),
        "few rows against a matrix": (make(3, 5, 20).transpose(0, 1), make(20, 40)),
        "offset": (make(18 * 20 + 1)[1:].view(18, 20), make(20 * 40 + 3)[3:].view(20, 40)),
        "power of two strides": (make(40, 1024)[:, :64], make(1024, 1024)[:64, :40]),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", _views())
def test_strided_operands(isa, kind, dtype):
    left, right = _views()[kind]
    if dtype != torch.float32:
        left, right = (
            torch.empty_strided(t.shape, t.stride(), dtype=dtype).copy_(t) if 0 not in t.stride() else t.to(dtype)
            for t in (left, right)
        )
    _assert_matches(TF.matmul(left, right), torch.matmul(left, right), left, right, kind)


def test_own_kernels_do_the_work():
    a, b = torch.randn(3, 8, 8, requires_grad=True), torch.randn(3, 8, 8, requires_grad=True)
    called = ops_called(lambda: TF.bmm(a, b).sum().backward())
    assert {"tilewright::matmul_forward", "tilewright::matmul_backward"} <= called
    assert not any(name in called for name in ("aten::bmm", "aten::mm", "aten::baddbmm"))
    called = ops_called(lambda: TF.baddbmm(a, a, b).sum().backward())
    assert {"tilewright::baddbmm_forward", "tilewright::matmul_backward"} <= called
    assert not any(name in called for name in ("aten::bmm", "aten::mm", "aten::baddbmm"))


@st.composite
def _operands(draw) -> tuple[Tensor, Tensor]:
    size = st.integers(1, 35)
    rows, depth, cols = draw(size), draw(st.integers(0, 50)), draw(size)
    batch = draw(st.lists(st.integers(1, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))

    def operand(matrix: list[int], others: int) -> Tensor:
        own = draw(st.integers(0, len(batch)))
        lead = [1 if draw(st.booleans()) else n for n in batch[len(batch) - own :]]
        shape = [*lead, *matrix]
        if not lead and draw(st.booleans()) and others == 1:
            shape = [depth]
        order = draw(st.permutations(range(len(shape))))
        steps = draw(st.sampled_from([1, 1, 2]))
        base = torch.randn([shape[i] * steps for i in order]).to(dtype)
        view = base[tuple(slice(None, None, steps) for _ in order)]
        return view.permute([order.index(i) for i in range(len(shape))])

    left = operand([rows, depth], 1 if rows == 1 else 0)
    right = operand([depth, cols], 1 if cols == 1 else 0)
    return left, right


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(_operands())
def test_any_rank_stride_and_dtype(operands):
    left, right = operands
    _assert_matches(TF.matmul(left, right), torch.matmul(left, right), left, right, f"{left.shape} {right.shape}")


SCALARS = {
    "0-D": torch.tensor(2.0),
    "0-D integer": torch.tensor(3),
    "0-D bool": torch.tensor(True),
    "0-D complex": torch.tensor(1j),
    "0-D with gradient": torch.tensor(2.0, requires_grad=True),
    "1-D": torch.tensor([2.0]),
    "numpy": np.float32(0.5),
    "numpy integer": np.int64(3),
    "numpy bool": np.bool_(True),
    "numpy array": np.array(2.0),
    "numpy str": np.str_("2"),
    "bool": True,
    "complex": 1j,
    "str": "2",
    "None": None,
    "list": [2.0],
    "fraction": Fraction(1, 2),
}


@pytest.mark.parametrize("name", ["beta", "alpha"])
@pytest.mark.parametrize("kind", SCALARS)
def test_baddbmm_takes_natives_numbers(kind, name):
    tensors = torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    try:
        native = torch.baddbmm(*tensors, **{name: SCALARS[kind]})
    except Exception as error:
        with pytest.raises(type(error)):
            TF.baddbmm(*tensors, **{name: SCALARS[kind]})
    else:
        torch.testing.assert_close(TF.baddbmm(*tensors, **{name: SCALARS[kind]}), native)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 18, 40), (18, 40), (40,), (5, 1, 1), (1,), (), (1, 18, 1)])
def test_baddbmm(isa, dtype, shape):
    batch1, batch2 = torch.randn(5, 18, 23, dtype=dtype), torch.randn(5, 23, 40, dtype=dtype)
    extra = torch.randn(shape, dtype=dtype)
    for beta, alpha in ((1, 1), (0.5, -2), (1, 0), (0, 1)):
        ours = TF.baddbmm(extra, batch1, batch2, beta=beta, alpha=alpha)
        native = torch.baddbmm(extra, batch1, batch2, beta=beta, alpha=alpha)
        reference = beta * extra.double() + alpha * (batch1.double() @ batch2.double())
        assert_as_accurate(ours, native, reference, what=f"beta {beta} alpha {alpha}")


def test_baddbmm_beta_zero_does_not_read_input():
    extra = torch.full((2, 3, 4), float("nan"))
    batch1, batch2 = torch.randn(2, 3, 5), torch.randn(2, 5, 4)
    torch.testing.assert_close(TF.baddbmm(extra, batch1, batch2, beta=0), torch.bmm(batch1, batch2))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_not_finite_like_native(isa, value):
    for rows, cols in ((1, 1), (3, 50), (50, 3), (40, 50)):
        a, b = torch.randn(rows, 20), torch.randn(20, cols)
        a[0, 7] = value
        for right in (b, b.T.contiguous().T):
            torch.testing.assert_close(TF.matmul(a, right), torch.matmul(a, right), equal_nan=True)


def test_same_bits_for_any_thread_count():
    cases = [
        (torch.randn(300, 500), torch.randn(500, 700)),
        (torch.randn(3, 200, 300), torch.randn(3, 300, 400)),
        (torch.randn(2, 2000), torch.randn(4000, 2000).T),
        (torch.randn(2, 2000), torch.randn(2000, 4000)),
        (torch.randn(3000, 400).to(torch.bfloat16), torch.randn(400, 130).to(torch.bfloat16)),
        (torch.randn(64, 4096), torch.randn(4096, 64)),
        (torch.randn(2, 2048, 30).mT, torch.randn(2, 50, 2048).mT),
    ]
    before = torch.get_num_threads()
    for a, b in cases:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
            out = TF.matmul(x, y)
            results.append([out, *torch.autograd.grad(out.sum(), (x, y))])
        torch.set_num_threads(before)
        assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))

"""The kernels behind matmul, baddbmm, linear and their gradients.

    C[batch, M, N] = act(alpha * sum over reduced and K of A[batch, reduced, M, K] B[batch, reduced, K, N]
                         + beta * addend[batch, M, N])

:func:`product` computes it in tiles. Every operand is a pointer and strides, so transposed and broadcast operands
(stride 0) are never copied. Where the tiles are too few to fill the card the sum is cut into splits, whose float32
results :mod:`tilewright.triton.matmul_splits` adds in order and finishes. :mod:`tilewright.triton.matmul_product`
launches both.
"""

import triton
import triton.language as tl

from .activation import activate

# How A and B are read (the constant ACCESS).
STRIDED, CONTIGUOUS, VECTOR, DESCRIPTOR = 0, 1, 2, 3
# How the addend is read: not at all, by strides, 16 bytes at a time, or as one row for all rows.
NO_ADDEND, STRIDED_ADDEND, VECTOR_ADDEND, ROW_ADDEND = 0, 1, 2, 3

GROUP = 8  # rows of tiles whose columns are walked together, so that both operands stay in L2
SPLIT_ROWS, SPLIT_COLUMNS = 16, 128  # the block of sum_splits

POINTERS = ("a", "b", "c", "addend", "pre", "partial")
SIZES = (
    *("M", "N", "K", "batch", "batch1", "batch2", "reduced", "splits"),
    *("a_row", "a_col", "a_batch0", "a_batch1", "a_batch2", "a_reduced"),
    *("b_row", "b_col", "b_batch0", "b_batch1", "b_batch2", "b_reduced"),
    *("c_row", "c_col", "c_batch0", "c_batch1", "c_batch2"),
    *("addend_row", "addend_col", "addend_batch0", "addend_batch1", "addend_batch2"),
)
FLAGS = ("activation", "addend_access", "vector_output", "saves_pre")


@triton.jit
def tile_position(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """(row, column) of a tile: GROUP rows of tiles are walked column by column, then the next GROUP rows."""
    group = tile // (GROUP * tiles_n)
    first = group * GROUP
    rows = tl.minimum(tiles_m - first, GROUP)
    inside = tile - first * tiles_n
    return first + inside % rows, inside // rows


@triton.jit
def batch_offset(item, batch1, batch2, stride0, stride1, stride2):
    """Where an item of the batch begins; the last two of the three batch dimensions have sizes batch1 and batch2."""
    outer = item // batch2
    return (outer // batch1) * stride0 + (outer % batch1) * stride1 + (item - outer * batch2) * stride2


@triton.jit
def _load_tile(base, row, col, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """[ROWS, COLS] of a strided matrix, zeros from `rows` and `cols` on."""
    i, j = tl.arange(0, ROWS)[:, None].to(tl.int64), tl.arange(0, COLS)[None, :].to(tl.int64)
    return tl.load((base + i * row) + j * col, mask=(i < rows) & (j < cols), other=0.0)


@triton.jit
def _tile_indices(m0, n0, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Row and column numbers of a tile. They hold the tile's place, so no address made of them outlives the tile."""
    return m0 + tl.arange(0, BLOCK_M)[:, None], n0 + tl.arange(0, BLOCK_N)[None, :]


@triton.jit
def _addend_tile(
    addend,
    access,
    row,
    col,
    m0,
    n0,
    M,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VEC: tl.constexpr,
    ANY_LAYOUT: tl.constexpr,
):
    """The addend's tile in float32 by one of the access codes; `addend` is its first matrix element."""
    i, j = _tile_indices(m0, n0, BLOCK_M, BLOCK_N)
    value = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if access == 3:
        value += tl.load(addend + j * col, mask=j < N, other=0.0).to(tl.float32)
    elif (access == 2) | (not ANY_LAYOUT):
        base = tl.multiple_of(addend + n0, 16)
        inside = (i < M) & (j < N // VEC * VEC)
        value += tl.load((base + i * (row // VEC * VEC)) + (j - n0), mask=inside, other=0.0).to(tl.float32)
    else:
        value += tl.load((addend + i * row) + j * col, mask=(i < M) & (j < N), other=0.0).to(tl.float32)
    return value


@triton.jit
def _store_tile(
    c,
    value,
    vector,
    row,
    col,
    m0,
    n0,
    M,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VEC: tl.constexpr,
    ANY_LAYOUT: tl.constexpr,
):
    """Round and store a tile; `c` is the first element of its matrix. `vector`: contiguous rows, 16-byte aligned."""
    i, j = _tile_indices(m0, n0, BLOCK_M, BLOCK_N)
    value = value.to(c.dtype.element_ty)
    if (vector != 0) | (not ANY_LAYOUT):
        base = tl.multiple_of(c + n0, 16)
        inside = (i < M) & (j < N // VEC * VEC)
        tl.store((base + i * (row // VEC * VEC)) + tl.arange(0, BLOCK_N)[None, :], value, mask=inside)
    else:
        tl.store((c + i * row) + j * col, value, mask=(i < M) & (j < N))


@triton.jit
def _slices(x, SLICES: tl.constexpr):
    """A tile's columns in 1, 2, 4 or 8 equal parts, as a tuple."""
    if SLICES == 1:
        return (x,)
    else:
        left, right = tl.split(x.reshape(x.shape[0], 2, x.shape[1] // 2).permute(0, 2, 1))
        return _slices(left, SLICES // 2) + _slices(right, SLICES // 2)


@triton.jit(do_not_specialize=[*SIZES, *FLAGS, "alpha", "beta"], do_not_specialize_on_alignment=[*POINTERS])
def product(
    a,
    b,
    c,
    addend,
    pre,
    partial,
    alpha: tl.float32,
    beta: tl.float32,
    M: tl.int64,
    N: tl.int64,
    K: tl.int64,
    batch: tl.int64,
    batch1: tl.int64,
    batch2: tl.int64,
    reduced: tl.int64,
    splits: tl.int64,
    a_row: tl.int64,
    a_col: tl.int64,
    a_batch0: tl.int64,
    a_batch1: tl.int64,
    a_batch2: tl.int64,
    a_reduced: tl.int64,
    b_row: tl.int64,
    b_col: tl.int64,
    b_batch0: tl.int64,
    b_batch1: tl.int64,
    b_batch2: tl.int64,
    b_reduced: tl.int64,
    c_row: tl.int64,
    c_col: tl.int64,
    c_batch0: tl.int64,
    c_batch1: tl.int64,
    c_batch2: tl.int64,
    addend_row: tl.int64,
    addend_col: tl.int64,
    addend_batch0: tl.int64,
    addend_batch1: tl.int64,
    addend_batch2: tl.int64,
    activation: tl.int32,
    addend_access: tl.int32,
    vector_output: tl.int32,
    saves_pre: tl.int32,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACCESS: tl.constexpr,
    A_ALONG_K: tl.constexpr,
    B_ALONG_K: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    SLICES: tl.constexpr,
    ANY_LAYOUT: tl.constexpr,
):
    """Tiles of C, or with splits > 1 of partial[split, batch, M, N], by a grid of any size.

    ACCESS STRIDED: any strides, in elements. CONTIGUOUS: stride 1 along the dimension that A_ALONG_K or B_ALONG_K
    names. VECTOR: that, and the base 16-byte aligned, all other strides and the contiguous dimension's size multiples
    of 16 bytes. DESCRIPTOR: a and b are tensor descriptors [batch, rows, cols] with rows the dimension
    that is not contiguous, and the batch and reduced strides are steps along their first dimension. `c`, `addend` and
    `pre` have the layout of C; `pre` gets what the activation is applied to.
    """
    VEC: tl.constexpr = 128 // c.dtype.element_ty.primitive_bitwidth
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    k_blocks = tl.cdiv(K, BLOCK_K)
    steps = k_blocks * reduced
    steps_per_split = tl.cdiv(steps, splits)
    if (ACCESS == 1) | (ACCESS == 2):
        # A multiplication by UNIT is what tells the compiler of the alignment.
        UNIT: tl.constexpr = VEC if ACCESS == 2 else 1
        if A_ALONG_K:
            a_row, a_col = a_row // UNIT * UNIT, 1
        else:
            a_row, a_col = 1, a_col // UNIT * UNIT
        if B_ALONG_K:
            b_row, b_col = 1, b_col // UNIT * UNIT
        else:
            b_row, b_col = b_row // UNIT * UNIT, 1
    per_item = tiles_m * tiles_n * splits
    for tile in range(tl.program_id(0).to(tl.int64), per_item * batch, tl.num_programs(0)):
        item = tile // per_item
        inside = tile - item * per_item
        split = inside // (tiles_m * tiles_n)
        tile_m, tile_n = tile_position(inside - split * (tiles_m * tiles_n), tiles_m, tiles_n, GROUP)
        m0, n0 = tile_m * BLOCK_M, tile_n * BLOCK_N
        rows, cols = M - m0, N - n0
        a_item = batch_offset(item, batch1, batch2, a_batch0, a_batch1, a_batch2)
        b_item = batch_offset(item, batch1, batch2, b_batch0, b_batch1, b_batch2)
        if ACCESS != 3:
            a_base, b_base = a + (a_item + m0 * a_row), b + (b_item + n0 * b_col)

        first = split * steps_per_split
        last = tl.minimum(first + steps_per_split, steps)
        r = first // tl.maximum(k_blocks, 1)
        k_block = first - r * k_blocks
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for _ in range(first, last):
            k0 = k_block * BLOCK_K
            if ACCESS == 3:
                a_z, b_z = (a_item + r * a_reduced).to(tl.int32), (b_item + r * b_reduced).to(tl.int32)
                if A_ALONG_K:
                    left = a.load([a_z, m0.to(tl.int32), k0.to(tl.int32)]).reshape(BLOCK_M, BLOCK_K)
                else:
                    left = tl.trans(a.load([a_z, k0.to(tl.int32), m0.to(tl.int32)]).reshape(BLOCK_K, BLOCK_M))
                if B_ALONG_K:
                    right = tl.trans(b.load([b_z, n0.to(tl.int32), k0.to(tl.int32)]).reshape(BLOCK_N, BLOCK_K))
                else:
                    right = b.load([b_z, k0.to(tl.int32), n0.to(tl.int32)]).reshape(BLOCK_K, BLOCK_N)
            else:
                deep = K - k0
                a_rows, a_deep, b_deep, b_cols = rows, deep, deep, cols
                a_start, b_start = a_base + (r * a_reduced + k0 * a_col), b_base + (r * b_reduced + k0 * b_row)
                if ACCESS == 2:
                    # Along the contiguous dimension a bound must not cut an access.
                    if A_ALONG_K:
                        a_deep = deep // VEC * VEC
                    else:
                        a_rows = rows // VEC * VEC
                    if B_ALONG_K:
                        b_deep = deep // VEC * VEC
                    else:
                        b_cols = cols // VEC * VEC
                    a_start, b_start = tl.multiple_of(a_start, 16), tl.multiple_of(b_start, 16)
                left = _load_tile(a_start, a_row, a_col, a_rows, a_deep, BLOCK_M, BLOCK_K)
                right = _load_tile(b_start, b_row, b_col, b_deep, b_cols, BLOCK_K, BLOCK_N)
            accumulator = tl.dot(left, right, accumulator, input_precision=PRECISION)
            k_block += 1
            wraps = k_block == k_blocks
            r = tl.where(wraps, r + 1, r)
            k_block = tl.where(wraps, 0, k_block)

        # In slices: addresses and values of a whole tile would not fit the registers.
        start = batch_offset(item, batch1, batch2, c_batch0, c_batch1, c_batch2)
        addend_start = batch_offset(item, batch1, batch2, addend_batch0, addend_batch1, addend_batch2)
        WIDTH: tl.constexpr = BLOCK_N // SLICES
        slices = _slices(accumulator, SLICES)
        for s in tl.static_range(SLICES):
            n = n0 + s * WIDTH
            if ANY_LAYOUT and splits > 1:
                target = partial + (split * batch + item) * M * N
                _store_tile(target, slices[s], 0, N, 1, m0, n, M, N, BLOCK_M, WIDTH, VEC, ANY_LAYOUT)
            else:
                value = slices[s] * alpha
                if addend_access != 0:
                    value += beta * _addend_tile(
                        addend + addend_start,
                        addend_access,
                        addend_row,
                        addend_col,
                        m0,
                        n,
                        M,
                        N,
                        BLOCK_M,
                        WIDTH,
                        VEC,
                        ANY_LAYOUT,
                    )
                if saves_pre != 0:
                    _store_tile(
                        pre + start, value, vector_output, c_row, c_col, m0, n, M, N, BLOCK_M, WIDTH, VEC, ANY_LAYOUT
                    )
                value = activate(value, activation)
                _store_tile(c + start, value, vector_output, c_row, c_col, m0, n, M, N, BLOCK_M, WIDTH, VEC, ANY_LAYOUT)

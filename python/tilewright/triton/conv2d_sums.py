"""The main loops of conv2d's product (conv2d_product.py): a tile's sums over taps and channels, read in three ways."""

import triton
import triton.language as tl


@triton.jit
def inside_of(y, x, in_size):
    """Does a position lie in x? in_size: (height, width)."""
    return (y >= 0) & (y < in_size[0]) & (x >= 0) & (x < in_size[1])


@triton.jit
def flat_sums(
    x, weight, pixels, n, n_ok, sizes, in_size, steps, strides, source, GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """The product with taps and channels as one index; arguments as those of tap_sums."""
    row, y0, x0 = pixels
    first_group, channels, filters, _ = sizes
    taps_h, taps_w, step_h, step_w = steps
    tap0, tap_h, tap_w, taps = source
    depth = taps_h * taps_w * channels
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range((depth + BLOCK_K - 1) // BLOCK_K):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        k_ok = k < depth
        tap = k // channels
        channel = k - tap * channels
        i = tap // taps_w
        j = tap - i * taps_w
        inside = inside_of(y0[:, None] + (i * step_h)[None, :], x0[:, None] + (j * step_w)[None, :], in_size)
        place = (i * step_h).to(tl.int64) * strides[0] + (j * step_w).to(tl.int64) * strides[1] + channel
        a = tl.load(x + (row[:, None] + place[None, :]), inside & k_ok[None, :], 0.0)
        if GRADIENT:
            filter = (first_group * channels + channel).to(tl.int64)
            offsets = ((filter * taps + tap0 + i * tap_h + j * tap_w) * filters)[:, None] + n[None, :]
        else:
            filter = (first_group * filters + n).to(tl.int64)
            offsets = (filter * taps * channels)[None, :] + k[:, None]  # all taps in order: k counts as memory does
        b = tl.load(weight + offsets, k_ok[:, None] & n_ok[None, :], 0.0)
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    return sums


@triton.jit
def tap_sums(
    x, weight, pixels, n, n_ok, sizes, in_size, steps, strides, source, MODE: tl.constexpr, VECTOR: tl.constexpr,
    GRADIENT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr
):  # fmt: skip
    """The product tap by tap.

    Args:
        pixels: (offset in x, y, x) of the tile's rows at the window's origin.
        n, n_ok: the tile's columns.
        sizes: (first group, channels, filters, all channels of the tile's groups).
        in_size: (height, width) of x.
        steps: (taps down, taps across, positions between them down and across).
        strides: of x, (down, across).
        source: (first tap in the kernel, taps between those of the window down and across, all taps).
    """
    row, y0, x0 = pixels
    first_group, channels, filters, k_total = sizes
    taps_h, taps_w, step_h, step_w = steps
    tap0, tap_h, tap_w, taps = source
    # Rounding changes no value here; it tells the compiler what divides what, which makes 16-byte accesses.
    BYTES: tl.constexpr = VECTOR * x.dtype.element_ty.primitive_bitwidth // 8
    k_total = k_total // VECTOR * VECTOR
    blocks = (k_total + BLOCK_K - 1) // BLOCK_K
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(taps_h * taps_w * blocks):
        tap = step // blocks
        k = (step - tap * blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
        k_ok = k < k_total
        i = tap // taps_w
        j = tap - i * taps_w
        inside = inside_of(y0 + i * step_h, x0 + j * step_w, in_size)
        place = row + ((i * step_h).to(tl.int64) * strides[0] + (j * step_w).to(tl.int64) * strides[1])
        a_pointers = tl.multiple_of(x + (place[:, None] + k[None, :]), (1, BYTES))
        a = tl.load(a_pointers, inside[:, None] & k_ok[None, :], 0.0)
        kernel_tap = tap0 + i * tap_h + j * tap_w
        b_mask = k_ok[:, None] & n_ok[None, :]
        if MODE == "merged":  # weights stand on the diagonal, a block for each group
            b_mask = b_mask & ((k // channels)[:, None] == (n // filters)[None, :])
            if GRADIENT:
                filter = (first_group * channels + k).to(tl.int64)
                offsets = ((filter * taps + kernel_tap) * filters)[:, None] + (n % filters)[None, :]
            else:
                filter = (first_group * filters + n).to(tl.int64)
                offsets = ((filter * taps + kernel_tap) * channels)[None, :] + (k % channels)[:, None]
            b = tl.load(weight + offsets, b_mask, 0.0)
        elif GRADIENT:
            filter = (first_group * channels + k).to(tl.int64)
            offsets = ((filter * taps + kernel_tap) * filters)[:, None] + n[None, :]
            b = tl.load(tl.multiple_of(weight + offsets, (1, BYTES)), b_mask, 0.0)
        else:
            filter = (first_group * filters + n).to(tl.int64)
            offsets = ((filter * taps + kernel_tap) * channels)[None, :] + k[:, None]
            b = tl.load(tl.multiple_of(weight + offsets, (BYTES, 1)), b_mask, 0.0)
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    return sums


@triton.jit
def group_by_group(
    x, weight, pixels, n, n_ok, sizes, in_size, steps, strides, source, GRADIENT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr
):  # fmt: skip
    """The merged product without the zeros beside the diagonal; arguments as those of tap_sums."""
    row, y0, x0 = pixels
    first_group, channels, filters, _ = sizes
    taps_h, taps_w, step_h, step_w = steps
    tap0, tap_h, tap_w, taps = source
    group = n // filters
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(taps_h * taps_w * channels):
        tap, channel = step // channels, step % channels
        i, j = tap // taps_w, tap % taps_w
        inside = inside_of(y0 + i * step_h, x0 + j * step_w, in_size)
        place = row + ((i * step_h).to(tl.int64) * strides[0] + (j * step_w).to(tl.int64) * strides[1])
        a_pointers = x + (place[:, None] + (group * channels + channel)[None, :])
        a = tl.load(a_pointers, inside[:, None] & n_ok[None, :], 0.0)
        kernel_tap = tap0 + i * tap_h + j * tap_w
        if GRADIENT:
            filter = ((first_group + group) * channels + channel).to(tl.int64)
            offsets = (filter * taps + kernel_tap) * filters + n % filters
        else:
            filter = (first_group * filters + n).to(tl.int64)
            offsets = (filter * taps + kernel_tap) * channels + channel
        b = tl.load(weight + offsets, n_ok, 0.0)
        sums += a.to(tl.float32) * b.to(tl.float32)[None, :]
    return sums

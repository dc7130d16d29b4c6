"""The product behind conv2d's forward pass and data gradient: an implicit GEMM in NHWC, without a patch matrix.

    result[pixel, column] = sum over taps, k of  x[position(pixel, tap), k] * w[tap, k, column]

A row is a pixel of the result, of one residue class in the data gradient; position(pixel, tap) = pixel * scale + origin
+ tap * step along each axis, and what lies outside of x is zero. The weight is [F, KH, KW, C / groups] in memory in
both passes: k is the channel and the column the filter, or the other way round where GRADIENT.
"""

import triton
import triton.language as tl

from .activation import activate
from .conv2d_sums import flat_sums, group_by_group, tap_sums


@triton.jit
def first_and_count(residue, stride, padding, dilation, kernel, spacing):
    """conv2d_schedule.class_taps on the device."""
    found = kernel
    for tap in range(tl.minimum(spacing, kernel)):
        rest = (residue + padding - tap * dilation) % stride  # of either sign
        found = tl.where((rest == 0) & (tap < found), tap, found)
    count = tl.where(found < kernel, (kernel - 1 - found) // spacing + 1, 0)
    return tl.where(found < kernel, found, 0), count


@triton.jit
def _finish(
    sums, rows, m_ok, first, end, column_stride, vectors, bias, output, residual, saved, has_bias, has_residual,
    has_saved, activation, WIDEST: tl.constexpr, SLICE: tl.constexpr
):  # fmt: skip
    """bias, residual and activation on a block of sums, and its way to memory, SLICE columns at a time.

    All columns at once would need more registers for pointers and masks than there are beside the sums.

    Args:
        rows: [BLOCK_M] int64, where the pixels of output, residual and saved lie.
        first, end: the block's first column, and the one behind the last there is.
        vectors: columns are neighbours in memory and can be accessed by WIDEST; else column_stride counts, and
            neighbouring lanes take neighbouring pixels.
    """
    if sums.shape[1] > SLICE:
        HALF: tl.constexpr = sums.shape[1] // 2
        left, right = tl.split(tl.permute(tl.reshape(sums, (sums.shape[0], 2, HALF)), (0, 2, 1)))
        _finish(
            left, rows, m_ok, first, end, column_stride, vectors, bias, output, residual, saved, has_bias,
            has_residual, has_saved, activation, WIDEST, SLICE,
        )  # fmt: skip
        _finish(
            right, rows, m_ok, first + HALF, end, column_stride, vectors, bias, output, residual, saved, has_bias,
            has_residual, has_saved, activation, WIDEST, SLICE,
        )  # fmt: skip
    else:
        BYTES: tl.constexpr = WIDEST * output.dtype.element_ty.primitive_bitwidth // 8
        n = first + tl.arange(0, sums.shape[1])
        mask = m_ok[:, None] & (n < end)[None, :]
        # Nothing is known of these offsets' alignment, so nothing wider than an element is accessed, and that the run
        # of pixels breaks between images does no harm: the hint chooses the order of lanes and nothing else.
        offsets = tl.max_contiguous(rows[:, None] + (n * column_stride)[None, :], (sums.shape[0], 1))
        # Rounding changes no value where there are vectors; it tells the compiler what divides what.
        whole = first // WIDEST * WIDEST + tl.arange(0, sums.shape[1])
        whole_mask = m_ok[:, None] & (whole < end // WIDEST * WIDEST)[None, :]
        whole_offsets = rows[:, None] + whole[None, :]
        if has_bias:
            sums += tl.load(bias + n, n < end, 0.0).to(tl.float32)[None, :]
        if has_residual:
            if vectors:
                sums += tl.load(tl.multiple_of(residual + whole_offsets, (1, BYTES)), whole_mask, 0.0).to(tl.float32)
            else:
                sums += tl.load(residual + offsets, mask, 0.0).to(tl.float32)
        if has_saved:
            rounded = sums.to(output.dtype.element_ty)
            if vectors:
                tl.store(tl.multiple_of(saved + whole_offsets, (1, BYTES)), rounded, whole_mask)
            else:
                tl.store(saved + offsets, rounded, mask)
        result = activate(sums, activation).to(output.dtype.element_ty)
        if vectors:
            tl.store(tl.multiple_of(output + whole_offsets, (1, BYTES)), result, whole_mask)
        else:
            tl.store(output + offsets, result, mask)


@triton.jit
def _axis(residue, size, kernel, stride, padding, dilation, spacing, GRADIENT: tl.constexpr):
    """One axis of a window: (pixels of the result, scale, origin, taps, step), first tap of the kernel.

    Pixel q reads position q * scale + origin + t * step for the t-th of its taps, kernel tap first + t * spacing.
    """
    if GRADIENT:
        first, taps = first_and_count(residue, stride, padding, dilation, kernel, spacing)
        # Exact where there are taps.
        origin = (residue + padding - first * dilation) // stride
        return (size - residue + stride - 1) // stride, 1, origin, taps, -(spacing * dilation // stride), first
    else:
        return size, stride, -padding, kernel, dilation, 0


@triton.jit(
    do_not_specialize=[
        "images", "channels", "filters", "groups", "merge", "in_height", "in_width", "out_height", "out_width",
        "kernel_height", "kernel_width", "stride_height", "stride_width", "padding_height", "padding_width",
        "dilation_height", "dilation_width", "spacing_height", "spacing_width", "classes_width", "x_image", "x_row",
        "x_pixel", "pixel_tiles", "column_tiles", "has_bias", "has_residual", "has_saved", "activation", "planes",
        "stores_vectors",
    ],
    do_not_specialize_on_alignment=["x", "weight", "bias", "residual", "output", "saved"],
)  # fmt: skip
def product(
    x,  # [N, in_height, in_width, groups * channels] through strides, channels innermost
    weight,  # [F, KH, KW, C / groups]
    bias,  # [groups * filters]
    residual,  # as output
    output,  # [N, groups * filters, out_height, out_width], NHWC in memory, or NCHW where planes
    saved,  # as output: what the activation is applied to
    images: tl.int32,
    channels: tl.int32,  # reduced, in one group
    filters: tl.int32,  # columns, in one group
    groups: tl.int32,
    merge: tl.int32,  # groups side by side in a tile
    in_height: tl.int32,
    in_width: tl.int32,
    out_height: tl.int32,
    out_width: tl.int32,
    kernel_height: tl.int32,
    kernel_width: tl.int32,
    stride_height: tl.int32,
    stride_width: tl.int32,
    padding_height: tl.int32,
    padding_width: tl.int32,
    dilation_height: tl.int32,
    dilation_width: tl.int32,
    spacing_height: tl.int32,  # between the taps of a residue class
    spacing_width: tl.int32,
    classes_width: tl.int32,  # residue classes in a row
    x_image: tl.int64,  # strides of x
    x_row: tl.int64,
    x_pixel: tl.int64,
    pixel_tiles: tl.int32,
    column_tiles: tl.int32,
    has_bias: tl.int32,
    has_residual: tl.int32,
    has_saved: tl.int32,
    activation: tl.int32,
    planes: tl.int32,
    stores_vectors: tl.int32,
    MODE: tl.constexpr,  # how operands are read: conv2d_schedule.reading
    VECTOR: tl.constexpr,  # elements that every run of channels is a multiple of, aligned
    WIDEST: tl.constexpr,  # elements in 16 bytes
    GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICE: tl.constexpr,  # columns of the result finished at a time
):
    # Neighbouring programs share pixels: tiles of columns, then groups, then tiles of pixels, then residue classes.
    program = tl.program_id(0)
    column_tile = program % column_tiles
    rest = program // column_tiles
    tile_groups = (groups + merge - 1) // merge
    first_group = rest % tile_groups * merge
    rest = rest // tile_groups
    pixel_tile = rest % pixel_tiles
    residue = rest // pixel_tiles
    live = tl.minimum(merge, groups - first_group)

    # The window, and which residue class of the result's pixels: without classes, all of them.
    residue_h, residue_w = residue // classes_width, residue % classes_width
    rows, scale_h, origin_h, taps_h, step_h, first_h = _axis(
        residue_h, out_height, kernel_height, stride_height, padding_height, dilation_height, spacing_height, GRADIENT
    )
    width, scale_w, origin_w, taps_w, step_w, first_w = _axis(
        residue_w, out_width, kernel_width, stride_width, padding_width, dilation_width, spacing_width, GRADIENT
    )

    # Rows of the tile: one 64-bit division for the first, 32-bit ones for the others.
    plane = rows * width
    start = pixel_tile.to(tl.int64) * BLOCK_M
    first_image = start // plane
    if first_image >= images:
        return  # the other residue classes are larger
    local = (start - first_image * plane).to(tl.int32) + tl.arange(0, BLOCK_M)
    image = local // plane
    within = local - image * plane
    image += first_image.to(tl.int32)
    q = within // width
    u = within - q * width
    m_ok = image < images
    y0 = tl.where(m_ok, q * scale_h + origin_h, -(1 << 30))  # a position that no tap brings inside
    x0 = u * scale_w + origin_w
    row = image * x_image + y0.to(tl.int64) * x_row + x0.to(tl.int64) * x_pixel
    row += first_group.to(tl.int64) * channels

    pixels = (row, y0, x0)
    n_total = live * filters
    if GRADIENT and MODE == "taps":
        n_total = n_total // VECTOR * VECTOR  # changes no value: the weight is read 16 bytes at a time along n
    n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    n_ok = n < n_total
    sizes = (first_group, channels, filters, live * channels)
    in_size = (in_height, in_width)
    steps = (taps_h, taps_w, step_h, step_w)
    strides = (x_row, x_pixel)
    source = (
        first_h * kernel_width + first_w, spacing_height * kernel_width, spacing_width, kernel_height * kernel_width
    )  # fmt: skip
    if MODE == "flat":
        sums = flat_sums(
            x, weight, pixels, n, n_ok, sizes, in_size, steps, strides, source, GRADIENT, PRECISION, BLOCK_M, BLOCK_N,
            BLOCK_K,
        )  # fmt: skip
    else:
        sums = tap_sums(
            x, weight, pixels, n, n_ok, sizes, in_size, steps, strides, source, MODE, VECTOR, GRADIENT, PRECISION,
            BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    if MODE == "merged":  # noqa: SIM102 (a constant, and a value)
        # Where a sum is not finite, zeros beside the diagonal have met another group's infinities.
        if tl.max(tl.where(sums - sums == 0.0, 0, 1)) != 0:
            sums = group_by_group(
                x, weight, pixels, n, n_ok, sizes, in_size, steps, strides, source, GRADIENT, BLOCK_M, BLOCK_N
            )

    if GRADIENT:
        within = (q * stride_height + residue_h) * out_width + u * stride_width + residue_w
    total = (groups * filters).to(tl.int64)
    out_plane = (out_height * out_width).to(tl.int64)
    column_stride = tl.where(planes != 0, out_plane, 1)
    lines = tl.where(planes != 0, image * total * out_plane + within, (image * out_plane + within) * total)
    first = first_group * filters
    _finish(
        sums, lines, m_ok, first + column_tile * BLOCK_N, first + n_total, column_stride, stores_vectors, bias, output,
        residual, saved, has_bias, has_residual, has_saved, activation, WIDEST, SLICE,
    )  # fmt: skip

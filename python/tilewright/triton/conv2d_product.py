"""The product behind conv2d's forward pass and data gradient: an implicit GEMM in NHWC, without a patch matrix.

    result[pixel, column] = sum over taps, k of  x[position(pixel, tap), k] * w[tap, k, column]

A row is a pixel of the result, of one residue class in the data gradient; position(pixel, tap) = pixel * scale + origin
+ tap * step along each axis, and what lies outside of x is zero. The weight is [F, KH, KW, C / groups] in memory in
both passes: k is the channel and the column the filter, or the other way round where GRADIENT.
"""

import triton
import triton.language as tl

from .activation import activate


@triton.jit
def first_and_count(residue, stride, padding, dilation, kernel, spacing):
    """conv2d_schedule.class_taps on the device."""
    found = kernel
    for tap in range(spacing):
        # Differences modulo stride, kept positive.
        rest = (residue + padding % stride + (stride - dilation % stride) * (tap % stride)) % stride
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
def _group_by_group(
    x, weight, row, y0, x0, n, n_ok, first_group, channels, filters, in_height, in_width, tap0, taps_h, taps_w, step_h,
    step_w, stride_h, stride_w, tap_h, tap_w, taps, GRADIENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """The merged product where it met a number that is not finite, which must not reach the groups beside its own."""
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    group = n // filters
    for step in range(taps_h * taps_w * channels):
        tap, c = step // channels, step % channels
        ti, tj = tap // taps_w, tap % taps_w
        y, u = y0 + ti * step_h, x0 + tj * step_w
        inside = (y >= 0) & (y < in_height) & (u >= 0) & (u < in_width)
        place = ti.to(tl.int64) * step_h * stride_h + tj.to(tl.int64) * step_w * stride_w
        mask = inside[:, None] & n_ok[None, :]
        a = tl.load(x + row[:, None] + place + (group * channels + c)[None, :], mask, 0.0)
        source = tap0 + ti * tap_h + tj * tap_w
        if GRADIENT:
            filter = ((first_group + group) * channels + c).to(tl.int64)
            offset = filter * taps * filters + source * filters + n % filters
        else:
            filter = (first_group * filters + n).to(tl.int64)
            offset = filter * taps * channels + source * channels + c
        b = tl.load(weight + offset, n_ok, 0.0)
        sums += a.to(tl.float32) * b.to(tl.float32)[None, :]
    return sums


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

    # The window: which taps there are, where the first lies, how far apart they are.
    if GRADIENT:
        residue_h, residue_w = residue // classes_width, residue % classes_width
        first_h, taps_h = first_and_count(
            residue_h, stride_height, padding_height, dilation_height, kernel_height, spacing_height
        )
        first_w, taps_w = first_and_count(
            residue_w, stride_width, padding_width, dilation_width, kernel_width, spacing_width
        )
        rows = (out_height - residue_h + stride_height - 1) // stride_height
        width = (out_width - residue_w + stride_width - 1) // stride_width
        # Exact where there are taps, in floor division's stead: the dividend may be negative.
        origin_h = (residue_h + padding_height - first_h * dilation_height) // stride_height
        origin_w = (residue_w + padding_width - first_w * dilation_width) // stride_width
        step_h, step_w = -(spacing_height * dilation_height // stride_height), -(spacing_width * dilation_width // stride_width)
        scale_h, scale_w = 1, 1
    else:
        residue_h, residue_w, first_h, first_w = 0, 0, 0, 0
        taps_h, taps_w = kernel_height, kernel_width
        rows, width = out_height, out_width
        origin_h, origin_w = -padding_height, -padding_width
        step_h, step_w = dilation_height, dilation_width
        scale_h, scale_w = stride_height, stride_width
    taps = kernel_height * kernel_width
    # tap (ti, tj) of the window is tap0 + ti * tap_h + tj * tap_w of the kernel
    tap0 = first_h * kernel_width + first_w
    tap_h, tap_w = spacing_height * kernel_width, spacing_width

    # Rows of the tile: one 64-bit division for the first, 32-bit ones for the others.
    plane = rows * width
    start = pixel_tile.to(tl.int64) * BLOCK_M
    first_image = start // plane
    if first_image >= images:
        return  # the other residue classes are larger
    local = (start - first_image * plane).to(tl.int32) + tl.arange(0, BLOCK_M)
    image = local // plane
    within = local - image * plane
    image = image + first_image.to(tl.int32)
    q = within // width
    u = within - q * width
    m_ok = image < images
    y0 = tl.where(m_ok, q * scale_h + origin_h, -(1 << 30))  # a position that no tap brings inside
    x0 = u * scale_w + origin_w
    row = image * x_image + y0.to(tl.int64) * x_row + x0.to(tl.int64) * x_pixel
    row = row + first_group.to(tl.int64) * channels

    # What is known of divisors makes 16-byte accesses: rounding here changes no value.
    BYTES: tl.constexpr = VECTOR * x.dtype.element_ty.primitive_bitwidth // 8
    k_total = live * channels // VECTOR * VECTOR
    n_total = live * filters
    if GRADIENT and MODE == "taps":
        n_total = n_total // VECTOR * VECTOR
    n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    n_ok = n < n_total
    ks = tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)

    if MODE == "flat":
        depth = taps_h * taps_w * channels
        for step in range((depth + BLOCK_K - 1) // BLOCK_K):
            k = step * BLOCK_K + ks
            tap = k // channels
            c = k - tap * channels
            ti = tap // taps_w
            tj = tap - ti * taps_w
            y = y0[:, None] + (ti * step_h)[None, :]
            z = x0[:, None] + (tj * step_w)[None, :]
            k_ok = k < depth
            inside = (y >= 0) & (y < in_height) & (z >= 0) & (z < in_width) & k_ok[None, :]
            place = (ti * step_h).to(tl.int64) * x_row + (tj * step_w).to(tl.int64) * x_pixel + c
            a = tl.load(x + (row[:, None] + place[None, :]), inside, 0.0)
            source = tap0 + ti * tap_h + tj * tap_w
            if GRADIENT:
                filter = (first_group * channels + c).to(tl.int64)
                offset = (filter * taps * filters + source * filters)[:, None] + n[None, :]
            else:
                filter = (first_group * filters + n).to(tl.int64)
                offset = (filter * taps * channels)[None, :] + k[:, None]
            b = tl.load(weight + offset, k_ok[:, None] & n_ok[None, :], 0.0)
            sums = tl.dot(a, b, sums, input_precision=PRECISION)
    else:
        blocks = (k_total + BLOCK_K - 1) // BLOCK_K
        for step in range(taps_h * taps_w * blocks):
            tap = step // blocks
            k = (step - tap * blocks) * BLOCK_K + ks
            ti = tap // taps_w
            tj = tap - ti * taps_w
            y = y0 + ti * step_h
            z = x0 + tj * step_w
            inside = (y >= 0) & (y < in_height) & (z >= 0) & (z < in_width)
            place = row + ((ti * step_h).to(tl.int64) * x_row + (tj * step_w).to(tl.int64) * x_pixel)
            k_ok = k < k_total
            a_pointers = tl.multiple_of(x + (place[:, None] + k[None, :]), (1, BYTES))
            a = tl.load(a_pointers, inside[:, None] & k_ok[None, :], 0.0)
            source = tap0 + ti * tap_h + tj * tap_w
            mask = k_ok[:, None] & n_ok[None, :]
            if MODE == "merged":
                mask = mask & ((k // channels)[:, None] == (n // filters)[None, :])
            if GRADIENT:
                filter = (first_group * channels + k).to(tl.int64)
                column = n % filters if MODE == "merged" else n
                run = filters // VECTOR * VECTOR if MODE == "taps" else filters
                pointers = weight + ((filter * (taps * run) + source * run)[:, None] + column[None, :])
                if MODE == "taps":
                    pointers = tl.multiple_of(pointers, (1, BYTES))
            else:
                filter = (first_group * filters + n).to(tl.int64)
                channel = k % channels if MODE == "merged" else k
                run = channels // VECTOR * VECTOR if MODE == "taps" else channels
                pointers = weight + ((filter * (taps * run) + source * run)[None, :] + channel[:, None])
                if MODE == "taps":
                    pointers = tl.multiple_of(pointers, (BYTES, 1))
            b = tl.load(pointers, mask, 0.0)
            sums = tl.dot(a, b, sums, input_precision=PRECISION)

    if MODE == "merged":
        # NaN where a sum is not finite. Zeros beside the diagonal must not meet another group's infinities.
        if tl.max(tl.max(tl.where((sums - sums) == 0.0, 0, 1), 1), 0) != 0:
            sums = _group_by_group(
                x, weight, row, y0, x0, n, n_ok, first_group, channels, filters, in_height, in_width, tap0, taps_h,
                taps_w, step_h, step_w, x_row, x_pixel, tap_h, tap_w, taps, GRADIENT, BLOCK_M, BLOCK_N,
            )  # fmt: skip

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

"""conv2d's weight and bias gradients: sums over pixels, cut into chunks whose partial sums are added in a fixed order.

    dweight[f, tap, c] = sum over pixels of  dy[pixel, f] * x[position(pixel, tap), c]
    dbias[f]           = sum over pixels of  dy[pixel, f]

dy is dense NHWC. Partial sums are float32, [chunk][f][tap][c] and [chunk][f].
"""

import triton
import triton.language as tl


@triton.jit
def step_pixels(image, y, x, step_images, step_rows, step_columns, height, width):
    """conv2d_schedule.advance on the device."""
    x += step_columns
    y += step_rows
    image += step_images
    y = tl.where(x >= width, y + 1, y)
    x = tl.where(x >= width, x - width, x)
    image = tl.where(y >= height, image + 1, image)
    y = tl.where(y >= height, y - height, y)
    return image, y, x


@triton.jit(
    do_not_specialize=[
        "images", "channels", "filters", "groups", "merge", "in_height", "in_width", "out_height", "out_width",
        "kernel_height", "kernel_width", "stride_height", "stride_width", "padding_height", "padding_width",
        "dilation_height", "dilation_width", "x_image", "x_row", "x_pixel", "chunk", "step_images", "step_rows",
        "step_columns", "filter_tiles", "column_tiles",
    ],
    do_not_specialize_on_alignment=["grad", "x", "partial"],
)  # fmt: skip
def weight_sums(
    grad,  # [N, out_height, out_width, groups * filters]
    x,  # [N, in_height, in_width, groups * channels] through strides, channels innermost
    partial,  # [chunks, groups * filters, KH, KW, channels]
    images: tl.int32,
    channels: tl.int32,  # of one group
    filters: tl.int32,
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
    x_image: tl.int64,
    x_row: tl.int64,
    x_pixel: tl.int64,
    chunk: tl.int32,  # pixels of one program
    step_images: tl.int32,  # BLOCK_K pixels: conv2d_schedule.pixel_step
    step_rows: tl.int32,
    step_columns: tl.int32,
    filter_tiles: tl.int32,
    column_tiles: tl.int32,
    MODE: tl.constexpr,  # "taps": a tile's columns are channels of one tap; "flat": any taps and channels; "merged"
    VECTOR: tl.constexpr,  # elements that the runs of x's channels are a multiple of, aligned
    GRAD_VECTOR: tl.constexpr,  # the same of dy's filters
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Programs that run together share a chunk of pixels: tiles of columns, taps, tiles of filters, groups, then chunks.
    taps = kernel_height * kernel_width
    tile_groups = (groups + merge - 1) // merge
    program = tl.program_id(0)
    column_tile = program % column_tiles
    rest = program // column_tiles
    n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if MODE == "flat":
        tap = n // channels
        column = n - tap * channels
        n_ok = n < taps * channels
    else:
        tap = rest % taps
        rest = rest // taps
        column = n
    filter_tile = rest % filter_tiles
    rest = rest // filter_tiles
    first_group = rest % tile_groups * merge
    part = rest // tile_groups
    live = tl.minimum(merge, groups - first_group)
    if MODE != "flat":
        n_ok = n < live * channels // VECTOR * VECTOR
    f = filter_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    f_ok = f < live * filters // GRAD_VECTOR * GRAD_VECTOR

    total = (groups * filters).to(tl.int64) // GRAD_VECTOR * GRAD_VECTOR
    plane = out_height * out_width
    start = part.to(tl.int64) * chunk
    count = tl.minimum(plane.to(tl.int64) * images - start, chunk.to(tl.int64)).to(tl.int32)
    first_image = start // plane
    ks = tl.arange(0, BLOCK_K)
    local = (start - first_image * plane).to(tl.int32) + ks
    image = local // plane
    within = local - image * plane
    image = image + first_image.to(tl.int32)
    y = within // out_width
    u = within - y * out_width

    tap_y = tap // kernel_width * dilation_height - padding_height
    tap_x = tap % kernel_width * dilation_width - padding_width
    grad_columns = first_group * filters // GRAD_VECTOR * GRAD_VECTOR + f
    x_columns = first_group * channels // VECTOR * VECTOR + column
    GRAD_BYTES: tl.constexpr = GRAD_VECTOR * grad.dtype.element_ty.primitive_bitwidth // 8
    BYTES: tl.constexpr = VECTOR * x.dtype.element_ty.primitive_bitwidth // 8
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, count, BLOCK_K):
        k_ok = ks < count - k
        grad_rows = (start + k + ks) * total
        a_pointers = tl.multiple_of(grad + (grad_rows[:, None] + grad_columns[None, :]), (1, GRAD_BYTES))
        a = tl.load(a_pointers, k_ok[:, None] & f_ok[None, :], 0.0)
        if MODE == "flat":
            in_y = (y * stride_height)[:, None] + tap_y[None, :]
            in_x = (u * stride_width)[:, None] + tap_x[None, :]
            inside = k_ok[:, None] & (in_y >= 0) & (in_y < in_height) & (in_x >= 0) & (in_x < in_width)
            rows = image.to(tl.int64) * x_image + (y * stride_height).to(tl.int64) * x_row
            rows += (u * stride_width).to(tl.int64) * x_pixel
            places = tap_y.to(tl.int64) * x_row + tap_x.to(tl.int64) * x_pixel + x_columns
            b = tl.load(x + (rows[:, None] + places[None, :]), inside & n_ok[None, :], 0.0)
        else:
            in_y = y * stride_height + tap_y
            in_x = u * stride_width + tap_x
            inside = k_ok & (in_y >= 0) & (in_y < in_height) & (in_x >= 0) & (in_x < in_width)
            rows = image.to(tl.int64) * x_image + in_y.to(tl.int64) * x_row + in_x.to(tl.int64) * x_pixel
            b_pointers = tl.multiple_of(x + (rows[:, None] + x_columns[None, :]), (1, BYTES))
            b = tl.load(b_pointers, inside[:, None] & n_ok[None, :], 0.0)
        sums = tl.dot(tl.trans(a), b, sums, input_precision=PRECISION)
        image, y, u = step_pixels(image, y, u, step_images, step_rows, step_columns, out_height, out_width)

    all_filters = (groups * filters).to(tl.int64)
    mask = f_ok[:, None] & n_ok[None, :]
    if MODE == "merged":
        mask = mask & ((f // filters)[:, None] == (n // channels)[None, :])
        column = n % channels
    filter_rows = (part * all_filters + first_group * filters + f) * (taps * channels)
    tl.store(partial + (filter_rows[:, None] + (tap * channels + column)[None, :]), sums, mask)


@triton.jit(
    do_not_specialize=["pixels", "filters", "chunk", "filter_tiles"],
    do_not_specialize_on_alignment=["grad", "partial"],
)
def column_sums(
    grad,  # [pixels, filters]
    partial,  # [chunks, filters]
    pixels: tl.int64,
    filters: tl.int32,
    chunk: tl.int32,
    filter_tiles: tl.int32,
    VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    program = tl.program_id(0)
    part = program // filter_tiles
    f = program % filter_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    start = part.to(tl.int64) * chunk
    count = tl.minimum(pixels - start, chunk.to(tl.int64)).to(tl.int32)
    rows = tl.arange(0, BLOCK_M)
    BYTES: tl.constexpr = VECTOR * grad.dtype.element_ty.primitive_bitwidth // 8
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, count, BLOCK_M):
        offsets = ((start + k + rows) * filters)[:, None] + f[None, :]
        mask = (rows < count - k)[:, None] & (f < filters // VECTOR * VECTOR)[None, :]
        sums += tl.load(tl.multiple_of(grad + offsets, (1, BYTES)), mask, 0.0).to(tl.float32)
    tl.store(partial + part.to(tl.int64) * filters + f, tl.sum(sums, 0), f < filters)


@triton.jit(
    do_not_specialize=["size", "chunks", "inner", "middle", "transposes"],
    do_not_specialize_on_alignment=["partial", "output"],
)
def add_chunks(
    partial,  # [chunks, size], a row being [outer, middle, inner]
    output,  # [size], or [outer, inner, middle] where transposes
    size: tl.int64,
    chunks: tl.int32,
    inner: tl.int32,
    middle: tl.int32,
    transposes: tl.int32,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The chunks' sums, ROWS at a time (so many loads are under way at once) and in one order, rounded once."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    rows = tl.arange(0, ROWS)[:, None]
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, chunks, ROWS):
        part = first + rows
        sums += tl.load(partial + (part * size + at[None, :]), (part < chunks) & mask[None, :], 0.0)
    total = tl.sum(sums, 0)
    if transposes:
        outer = at // inner // middle
        at = (outer * inner + at % inner) * middle + at // inner % middle
    tl.store(output + at, total.to(output.dtype.element_ty), mask)

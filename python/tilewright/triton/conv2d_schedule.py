"""How conv2d is cut into tiles: pure functions of shapes, which the tests walk through exhaustively.

A convolution here is a product of `reduced` (the sum runs over them and over the taps) and `columns` (of the result),
channel counts of one group: channels and filters in the forward pass, filters and channels in the data gradient.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

# Streaming multiprocessors of the largest usual part: plans depend on shapes and on the table, never on the very card,
# so that results have the same bits on every part of one architecture.
PROCESSORS = {80: 108, 86: 84, 90: 132, 100: 148}

# Groups of at most this many channels and filters share a tile with their neighbours.
SMALL_GROUP = 16
MERGED_WIDTH = 32

# Positions are 32-bit numbers and may be added to one another.
LARGEST_PLANE = 1 << 28


@dataclass(frozen=True)
class Tile:
    """One compiled configuration of a product's kernel.

    Attributes:
        rows, columns, depth: the block of the result, and how much of the sum one step of the main loop takes.
        warps, stages: as Triton takes them.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def class_taps(residue: int, stride: int, padding: int, dilation: int, kernel: int) -> tuple[int, int]:
    """(first, count) of the taps that reach the input positions with `position % stride == residue`.

    Position x reads tap k where x + padding - k * dilation is a multiple of stride; such k are `tap_spacing` apart.
    """
    spacing = tap_spacing(stride, dilation)
    for first in range(min(spacing, kernel)):
        if (residue + padding - first * dilation) % stride == 0:
            return first, (kernel - 1 - first) // spacing + 1
    return 0, 0


def tap_spacing(stride: int, dilation: int) -> int:
    """The distance of the taps that one residue class of input positions reads."""
    return stride // math.gcd(stride, dilation)


def reading(architecture: int, bits: int, reduced: int, columns: int, groups: int, aligned: bool) -> tuple[str, int]:
    """How tiles read their operands, and a step's depth.

    "taps": a step is one tap and `depth` channels, read 16 bytes at a time.
    "merged": the same for several small groups side by side, with a block-diagonal weight.
    "flat": taps and channels are one index, decoded for every element: few or misaligned channels.
    """
    if groups > 1 and max(reduced, columns) <= SMALL_GROUP:
        return "merged", MERGED_WIDTH
    if aligned:
        for depth in sorted({tile.depth for tile in product_tiles(architecture, bits, "taps")}, reverse=True):
            # What a step has beyond the last channel multiplies zeros: of deep steps a fifth at most, of shallow ones,
            # behind which there is only "flat", half.
            waste = padded(reduced, depth) - reduced
            if waste * 4 <= reduced or (depth <= 32 and waste <= reduced):
                return "taps", depth
    return "flat", product_tiles(architecture, bits, "flat")[0].depth


def padded(size: int, block: int) -> int:
    """size, rounded up to whole blocks."""
    return -(-size // block) * block


def merged_groups(reduced: int, columns: int, groups: int) -> int:
    """How many small groups stand side by side in a tile."""
    return min(groups, MERGED_WIDTH // max(reduced, columns))


def product_tiles(architecture: int, bits: int, mode: str) -> tuple[Tile, ...]:
    """Every tile of the forward pass and of the data gradient, from the largest to the smallest.

    `bits` is 16, 32 (float32 proper: no tensor cores, small tiles that leave registers for the sums) or 19 (TF32).
    """
    if bits == 32:
        return {
            "taps": (Tile(64, 64, 16, 4, 3),),
            "flat": (Tile(64, 32, 16, 4, 2),),
            "merged": (Tile(64, 32, 32, 8, 2),),
        }[mode]
    stages = 3 if architecture in (80, 86) else 4
    if bits == 19:
        return {
            "taps": (Tile(128, 64, 32, 8, stages), Tile(64, 64, 32, 4, stages)),
            "flat": (Tile(64, 64, 32, 4, 2),),
            "merged": (Tile(64, 32, 32, 4, 2),),
        }[mode]
    if mode == "flat":
        return Tile(128, 64, 32, 8, 2), Tile(64, 32, 32, 4, 2)
    if mode == "merged":
        return (Tile(64, 32, 32, 4, stages),)
    shallow = (Tile(128, 128, 32, 8, stages + 1), Tile(128, 64, 32, 8, stages + 1), Tile(64, 32, 32, 4, stages + 1))
    if architecture == 86:
        return Tile(128, 128, 64, 8, 2), Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 4, 3), *shallow
    smaller = Tile(128, 128, 64, 8, stages), Tile(128, 64, 64, 8, stages), Tile(64, 64, 64, 4, stages), *shallow
    # Only where products take their operands from shared memory do registers hold 128 sums a thread and all the rest.
    return smaller if architecture == 80 else (Tile(128, 256, 64, 8, 4), *smaller)


def finished_at_a_time(tile: Tile) -> int:
    """Columns of a result that the epilogue works on at once: 16 elements a thread, 8 where sums fill the registers."""
    threads = 32 * tile.warps
    each = 8 if tile.rows * tile.columns >= 64 * threads else 16
    return min(tile.columns, each * threads // tile.rows)


def choose_tile(architecture: int, tiles: tuple[Tile, ...], rows: int, columns: int, copies: int, depth: int) -> Tile:
    """The largest tile that is not mostly empty and of which there are enough for every processor; else the smallest.

    Args:
        rows, columns: of one product.
        copies: how many such products there are: groups and residue classes.
        depth: of a step; other tiles do not serve.
    """
    fitting = [tile for tile in tiles if tile.depth == depth]
    for tile in fitting:
        programs = -(-rows // tile.rows) * -(-columns // tile.columns) * copies
        if padded(columns, tile.columns) * 3 <= columns * 4 and programs >= PROCESSORS[architecture]:
            return tile
    return fitting[-1]


def weight_tiles(architecture: int, bits: int, mode: str) -> tuple[Tile, ...]:
    """Every tile of the weight gradient: rows are filters, columns channels, and the sum runs over pixels."""
    stages = 3 if architecture in (80, 86) else 4
    if mode == "merged":
        return (Tile(MERGED_WIDTH, MERGED_WIDTH, 64 if bits == 16 else 32, 4, 3),)
    warps = 8 if mode == "flat" and bits != 16 else 4
    if bits == 32:
        return (Tile(64, 64, 16, warps, 2),)
    if bits == 19 or mode == "flat":
        return (Tile(64, 64, 32, warps, stages),)
    return Tile(128, 128, 32 if architecture == 86 else 64, 8, stages), Tile(64, 64, 64, 4, stages)


def choose_weight_tile(tiles: tuple[Tile, ...], filters: int, columns: int) -> Tile:
    """The largest tile that filters and columns fill by half; else the smallest."""
    for tile in tiles:
        if filters * 2 > tile.rows and columns * 2 > tile.columns:
            return tile
    return tiles[-1]


@dataclass(frozen=True)
class ProductPlan:
    """One launch of the forward pass or of the data gradient.

    Attributes:
        vector: elements that x's runs of channels are accessed by.
        merge: groups side by side in a tile.
        classes: residue classes of the result's positions, down and across.
    """

    mode: str
    vector: int
    tile: Tile
    merge: int
    tile_groups: int
    pixel_tiles: int
    column_tiles: int
    classes: tuple[int, int]

    @property
    def programs(self) -> int:
        return self.column_tiles * self.tile_groups * self.pixel_tiles * self.classes[0] * self.classes[1]


@lru_cache(maxsize=4096)
def plan_product(
    architecture: int,
    bits: int,
    images: int,
    size: tuple[int, int],
    classes: tuple[int, int],
    reduced: int,
    columns: int,
    groups: int,
    gradient: bool,
    aligned: tuple[bool, bool],
) -> ProductPlan:
    """What to launch for a result of `size`; aligned: do x's pixels, the weight start at multiples of 16 bytes?"""
    widest = widest_vector(bits)
    runs = (reduced, columns if gradient else reduced)
    whole = all(ok and run % widest == 0 for ok, run in zip(aligned, runs, strict=True))
    mode, depth = reading(architecture, bits, reduced, columns, groups, whole)
    merge, vector = 1, 1
    if mode == "merged":
        merge = merged_groups(reduced, columns, groups)
        vector = widest if aligned[0] and merge * reduced % widest == 0 and groups * reduced % widest == 0 else 1
    elif mode == "taps":
        vector = widest
    pixels = images * -(-size[0] // classes[0]) * -(-size[1] // classes[1])  # of the largest class
    tile_groups = -(-groups // merge)
    copies = tile_groups * classes[0] * classes[1]
    tile = choose_tile(architecture, product_tiles(architecture, bits, mode), pixels, merge * columns, copies, depth)
    pixel_tiles, column_tiles = -(-pixels // tile.rows), -(-merge * columns // tile.columns)
    return ProductPlan(mode, vector, tile, merge, tile_groups, pixel_tiles, column_tiles, classes)


def widest_vector(bits: int) -> int:
    """Elements in 16 bytes."""
    return 8 if bits == 16 else 4


@dataclass(frozen=True)
class WeightPlan:
    """One launch of the weight gradient; attributes as ProductPlan's, grad_vector that of the output's gradient."""

    mode: str
    vector: int
    grad_vector: int
    tile: Tile
    merge: int
    tiles: int
    filter_tiles: int
    column_tiles: int
    chunk: int
    chunks: int


@lru_cache(maxsize=4096)
def plan_weight(
    architecture: int,
    bits: int,
    pixels: int,
    taps: int,
    channels: int,
    filters: int,
    groups: int,
    aligned: tuple[bool, bool],
) -> WeightPlan:
    """What to launch; aligned: do the pixels of x, of the output's gradient start at multiples of 16 bytes?"""
    widest, merge, vector, grad_vector = widest_vector(bits), 1, 1, 1
    whole = [ok and run % widest == 0 for ok, run in zip(aligned, (channels, filters), strict=True)]
    if groups > 1 and max(channels, filters) <= SMALL_GROUP:
        mode, merge = "merged", merged_groups(channels, filters, groups)
        if all(aligned) and all(n * m % widest == 0 for n in (channels, filters) for m in (merge, groups)):
            vector = grad_vector = widest
    elif all(whole) and channels > 32:  # a tile has 64 columns
        mode, vector, grad_vector = "taps", widest, widest
    else:
        mode, grad_vector = "flat", widest if whole[1] else 1
    columns = merge * channels * (taps if mode == "flat" else 1)
    tile = choose_weight_tile(weight_tiles(architecture, bits, mode), merge * filters, columns)
    filter_tiles, column_tiles = -(-merge * filters // tile.rows), -(-columns // tile.columns)
    tiles = filter_tiles * column_tiles * -(-groups // merge) * (1 if mode == "flat" else taps)
    chunk, chunks = split_pixels(architecture, tiles, pixels, tile.depth)
    return WeightPlan(mode, vector, grad_vector, tile, merge, tiles, filter_tiles, column_tiles, chunk, chunks)


def split_pixels(architecture: int, tiles: int, pixels: int, depth: int) -> tuple[int, int]:
    """(chunk, chunks): into how many parts of `chunk` pixels the weight gradient's sum is cut.

    Two programs for each processor, as long as each keeps eight steps of its loop; the chunks' sums are added in order.
    """
    wanted = -(-2 * PROCESSORS[architecture] // tiles)
    possible = max(1, pixels // (8 * depth))
    chunk = padded(-(-pixels // min(wanted, possible)), depth)
    chunk = min(chunk, LARGEST_PLANE)
    return chunk, -(-pixels // chunk)


def split_rows(pixels: int, filters: int, block_rows: int, block_columns: int) -> tuple[int, int]:
    """(chunk, chunks) of the bias gradient's column sums: about a thousand programs, each at least four blocks long."""
    wanted = max(1, 1024 // -(-filters // block_columns))
    chunk = padded(max(-(-pixels // wanted), min(pixels, 4 * block_rows)), block_rows)
    chunk = min(chunk, LARGEST_PLANE)
    return chunk, -(-pixels // chunk)


def pixel_step(depth: int, height: int, width: int) -> tuple[int, int, int]:
    """`depth` pixels further on is so many images, rows and columns further on: each is less than its whole."""
    images, rest = divmod(depth, height * width)
    return images, *divmod(rest, width)


def advance(pixel: tuple[int, int, int], step: tuple[int, int, int], height: int, width: int) -> tuple[int, int, int]:
    """(image, row, column) and a pixel_step: the pixel that far on, without a division."""
    image, row, column = (a + b for a, b in zip(pixel, step, strict=True))
    if column >= width:
        row, column = row + 1, column - width
    if row >= height:
        image, row = image + 1, row - height
    return image, row, column

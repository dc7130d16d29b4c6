"""conv2d's index maths on the GPU: residue classes, chunks of pixels, and the tables of configurations."""

import itertools
import math

import pytest
import torch

from tilewright.triton import conv2d
from tilewright.triton import conv2d_schedule as schedule
from tilewright.triton.conv2d_shape import check
from tilewright.triton.conv2d_variants import product_variant, weight_variant
from tilewright.triton.variants import ARCHITECTURES, SHARED_MEMORY

BITS = {16: torch.float16, 19: torch.float32, 32: torch.float32}


def test_residue_classes_meet_every_pixel_and_tap_once():
    for stride, dilation, kernel, padding in itertools.product(range(1, 7), range(1, 7), range(1, 6), range(4)):
        spacing = schedule.tap_spacing(stride, dilation)
        size, out = 13, 50
        expected = {
            (y * stride - padding + tap * dilation, tap, y)
            for y in range(-out, out)
            for tap in range(kernel)
            if 0 <= y * stride - padding + tap * dilation < size
        }
        met = []
        for residue in range(min(stride, size)):
            first, count = schedule.class_taps(residue, stride, padding, dilation, kernel)
            origin, rest = divmod(residue + padding - first * dilation, stride)
            assert count == 0 or rest == 0
            assert spacing * dilation % stride == 0
            for q, t in itertools.product(range(-(-(size - residue) // stride)), range(count)):
                tap = first + t * spacing
                met.append((residue + q * stride, tap, q + origin - t * (spacing * dilation // stride)))
        assert len(met) == len(set(met))
        assert set(met) == expected


def test_classes_share_out_the_pixels():
    for stride, size in itertools.product(range(1, 9), range(1, 20)):
        counts = [-(-(size - residue) // stride) for residue in range(min(stride, size))]
        assert sum(counts) == size
        assert min(counts) >= 1
        assert counts[0] == max(counts) == -(-size // min(stride, size))


def test_advance_is_counting():
    for height, width, depth in itertools.product(range(1, 6), range(1, 6), (1, 2, 3, 7, 16, 64)):
        step = schedule.pixel_step(depth, height, width)
        for start in range(height * width + 3):
            pixel = (start // (height * width), start // width % height, start % width)
            end = start + depth
            expected = (end // (height * width), end // width % height, end % width)
            assert schedule.advance(pixel, step, height, width) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunks_cover_the_pixels(architecture):
    sizes = [*range(1, 300), 511, 512, 513, 1000, 4097, 100_352, 3_211_264, (1 << 31) + 77, (1 << 36) + 1]
    for pixels, tiles, depth in itertools.product(sizes, (1, 3, 100, 1000, 5000), (16, 32, 64)):
        chunk, chunks = schedule.split_pixels(architecture, tiles, pixels, depth)
        assert (chunks - 1) * chunk < pixels <= chunks * chunk
        assert chunk % depth == 0
        assert 0 < chunk <= schedule.LARGEST_PLANE
        if pixels < 1 << 28:
            assert chunks == 1 or chunk >= 8 * depth
            assert chunks * tiles <= 2 * schedule.PROCESSORS[architecture] + tiles
    for pixels, filters in itertools.product(sizes, (1, 3, 64, 65, 2048, 100_000)):
        chunk, chunks = schedule.split_rows(pixels, filters, 64, 64)
        assert (chunks - 1) * chunk < pixels <= chunks * chunk
        assert chunk % 64 == 0
        assert 0 < chunk <= schedule.LARGEST_PLANE


CHANNELS = (1, 2, 3, 4, 7, 8, 12, 16, 17, 24, 32, 33, 40, 48, 64, 72, 96, 128, 160, 256, 320, 513, 1024)
PIXELS = (1, 49, 64, 100, 784, 3136, 20_000, 100_352, 2_000_000)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_plans_launch_is_what_is_listed(architecture):
    listed = conv2d.variants(architecture)
    assert len(listed) == len(set(listed)) <= 100
    reached = set()
    for (bits, dtype), reduced, columns in itertools.product(BITS.items(), CHANNELS, CHANNELS):
        for pixels, groups, aligned in itertools.product(PIXELS, (1, 2, 32), (True, False)):
            for gradient in (False, True):
                plan = schedule.plan_product(
                    architecture, bits, 1, (pixels, 1), (1, 1), reduced, columns, groups, gradient, (aligned, True)
                )
                reached.add(product_variant(dtype, bits, plan.mode, plan.vector, gradient, plan.tile))
            weight = schedule.plan_weight(
                architecture, bits, pixels, 9, reduced, columns, groups, (aligned, groups != 2)
            )
            reached.add(weight_variant(dtype, bits, weight.mode, weight.vector, weight.grad_vector, weight.tile))
    products = {v for v in listed if v.kernel.__name__ in ("product", "weight_sums")}
    names = {v.name for v in products if "*bf16" not in v.name}  # those of float16, with another name
    assert {v.name for v in reached} == names


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plans_cover_the_result(architecture):
    for bits, reduced, columns, groups in itertools.product(BITS, CHANNELS, CHANNELS, (1, 5, 32)):
        for size, classes in (((1, 1), (1, 1)), ((7, 9), (2, 2)), ((56, 57), (1, 1)), ((15, 200), (3, 2))):
            plan = schedule.plan_product(
                architecture, bits, 3, size, classes, reduced, columns, groups, True, (True, True)
            )
            largest = 3 * math.ceil(size[0] / classes[0]) * math.ceil(size[1] / classes[1])
            tile = plan.tile
            assert (plan.pixel_tiles - 1) * tile.rows < largest <= plan.pixel_tiles * tile.rows
            assert (plan.column_tiles - 1) * tile.columns < plan.merge * columns <= plan.column_tiles * tile.columns
            assert (plan.tile_groups - 1) * plan.merge < groups <= plan.tile_groups * plan.merge
            assert plan.programs == (plan.pixel_tiles * plan.column_tiles * plan.tile_groups * classes[0] * classes[1])
            widest = schedule.widest_vector(bits)
            if plan.mode == "merged":
                assert plan.merge * max(reduced, columns) <= schedule.MERGED_WIDTH == tile.depth
                assert plan.vector == 1 or plan.merge * reduced % widest == 0
            else:
                assert plan.merge == 1
                assert plan.vector == (widest if plan.mode == "taps" else 1)
                assert plan.mode == "flat" or reduced % widest == columns % widest == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiles_fit_shared_memory(architecture):
    for bits, mode in itertools.product(BITS, ("taps", "flat", "merged")):
        tables = schedule.product_tiles(architecture, bits, mode), schedule.weight_tiles(architecture, bits, mode)
        for tile in itertools.chain(*tables):
            stage = (tile.rows + tile.columns) * tile.depth * BITS[bits].itemsize
            assert stage * tile.stages <= SHARED_MEMORY[architecture]
            assert tile.columns % schedule.finished_at_a_time(tile) == 0
            assert (tile.columns // schedule.finished_at_a_time(tile)).bit_count() == 1


def test_large_products_take_large_tiles_and_small_ones_many():
    def tile(pixels: int, channels: int, filters: int) -> tuple[int, int, int]:
        plan = schedule.plan_product(90, 16, 1, (pixels, 1), (1, 1), channels, filters, 1, False, (True, True))
        return plan.tile.rows, plan.tile.columns, plan.tile.depth

    assert tile(100_352, 256, 256) == (128, 256, 64)
    assert tile(32 * 49, 512, 512) == (64, 64, 64)  # 25 tiles of pixels: small ones keep the processors busy
    assert tile(100_352, 64, 64) == (128, 64, 64)
    assert tile(100_352, 32, 128) == (128, 128, 32)
    assert tile(100_352, 3, 64)[2] == 32


def test_too_large_planes_are_refused():
    x = torch.empty(1, 1, 1 << 15, 1 << 14, device="meta")
    weight = torch.empty(1, 1, 1, 1, device="meta")
    with pytest.raises(RuntimeError, match="pixels have no GPU kernel"):
        check(x, weight, None, (1, 1), (0, 0), (1, 1), 1)
    assert check(x[:, :, : 1 << 14], weight, None, (1, 1), (0, 0), (1, 1), 1).out == (1 << 14, 1 << 14)

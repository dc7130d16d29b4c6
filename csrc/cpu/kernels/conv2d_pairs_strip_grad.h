// The weights' gradient in pairs of bfloat16 without patches: a strip of the image (conv2d_pairs_strip.h) is
// interleaved by pairs of positions, once from an even and once from an odd one, and so is right operand for every tap:
//
//   sums[f, (t, c)] (+)= sum over p of dy[p, f] * strip[offset_t + p, c]        p: pixels, and what lies between rows
//
//   offset 4:   | 4 5 | 6 7 | ...   from the even ones         offset 7:   | 7 8 | 9 10 | ...   from the odd ones
//
// dy is 0 between two rows of pixels and behind the last: an infinity there makes sums NaN that are finite otherwise,
// so the caller looks at the sums.
#pragma once
#include "cpu/kernels/conv2d_pairs_strip.h"

namespace tilewright {
namespace {

// Channels interleaved at once: 600 KB with the 1200 positions of a block of stride 1.
constexpr int64_t kStripGradChannels = 128;

// dy in the strip's order, turned dy, the strip of some channels, and its pairs from even and from odd positions.
struct StripGradScratch {
  int64_t pixels, positions, channels;  // whole steps each
  int64_t rows, left, strip, panels;    // values; `panels` of one of the two
  StripGradScratch(const ConvWindow& window, const PhaseLayout& layout, int64_t channels_in_all, int64_t filters,
                   int64_t block_rows) {
    constexpr int64_t kWhole = 32;  // of a tile unit's steps; what is less is a divisor
    const auto whole = [](int64_t n) { return (n + kWhole - 1) / kWhole * kWhole; };
    pixels = whole((block_rows - 1) * layout.pitch + window.width);
    // The last tap's last step reads less than a row and a step behind the strip.
    positions = whole(layout.size + layout.pitch + kWhole);
    channels = whole(smaller(channels_in_all, kStripGradChannels));
    rows = pixels * whole(filters) + kWhole;
    left = tile_count(filters) * left_tile_size(pairs_of(pixels)) * 2 + kWhole;
    strip = (positions + 1) * channels;
    panels = positions * channels;
  }
  int64_t bytes() const { return (rows + left + strip + 2 * panels) * int64_t{sizeof(BF16)}; }
};

inline int64_t conv_strip_grad_bytes(const ConvWindow& window, int64_t channels, int64_t filters, int64_t rows) {
  return StripGradScratch(window, PhaseLayout(window, rows), channels, filters, rows).bytes();
}

// Rows of dy, filters of each pixel side by side, as a left operand of pairs of pixels.
inline void turn_strip_rows(const BF16* grad, int64_t grad_row, const ConvWindow& window, int64_t rows, int64_t pitch,
                            int64_t filters, int64_t pixels, BF16* copy, Pair* left) {
  BF16* to = copy;
  for (int64_t y = 0; y < rows; ++y, to += pitch * filters) {
    for (int64_t x = 0; x < window.width; ++x, grad += grad_row) copy_values<true>(to + x * filters, grad, filters);
    const int64_t end = y + 1 < rows ? pitch : pixels - y * pitch;
    clear_values(to + window.width * filters, (end - window.width) * filters);
  }
  const RowTiles tiles{filters, tile_count(filters)};
  copy_left(copy, 1, filters, tiles, 0, tiles.count, pixels, left);
}

// Blocks [block_begin, block_end) of `block_rows` output rows, counted through all images, of all groups; filters as in
// conv_pairs_weight_grad. offsets: of the taps, for whole blocks.
inline void conv_strip_weight_grad(const ConvPairsGradArgs<BF16>& args, int64_t block_rows, int64_t block_begin,
                                   int64_t block_end, int64_t filter_begin, int64_t filter_end, void* scratch) {
  const TileUnitScope unit;
  const ConvWindow& window = args.window;
  const int64_t taps = window.rows * window.cols, C = args.channels, filters = filter_end - filter_begin;
  const int64_t blocks = (window.height + block_rows - 1) / block_rows;
  int32_t offsets[kMostStripTaps];
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t n = block / blocks, row = block % blocks * block_rows;
    const int64_t rows = smaller(block_rows, window.height - row);
    const PhaseLayout layout(window, rows);
    const StripGradScratch sizes(window, layout, C, filters, rows);
    find_tap_offsets(window, layout, offsets);
    BF16* copy = static_cast<BF16*>(scratch);
    Pair* left = reinterpret_cast<Pair*>(copy + sizes.rows);
    BF16 *strip = copy + sizes.rows + sizes.left, *panels = strip + sizes.strip;
    for (int64_t group = 0; group < args.groups; ++group) {
      const int64_t first = group * args.filters + filter_begin;
      turn_strip_rows(args.grad + (n * window.height + row) * window.width * args.grad_row + first, args.grad_row,
                      window, rows, layout.pitch, filters, sizes.pixels, copy, left);
      for (int64_t c = 0; c < C; c += kStripGradChannels) {
        const int64_t channels = smaller(C - c, kStripGradChannels), pixel = strip_pixel(channels);
        copy_strip(args.in, args.in.data + n * args.in.n_stride + group * C + c, window, layout, row, channels, strip);
        clear_values(strip + layout.size * pixel, (sizes.positions + 1 - layout.size) * pixel);
        for (int64_t odd = 0; odd < 2; ++odd) {
          pack_right(sizes.positions, channels, strip + odd * pixel, pixel, int64_t{1},
                     reinterpret_cast<Pair*>(panels + odd * sizes.panels));
        }
        const auto panels_of = [&](int64_t t) {
          return reinterpret_cast<const Pair*>(panels + offsets[t] % 2 * sizes.panels) + offsets[t] / 2 * kPairPanel;
        };
        add_products(filters, taps, channels, sizes.pixels, left, panels_of, sizes.positions / 2 * kPairPanel,
                     PairGradSums{args.sums + first * taps * C + c, taps * C, C}, block > block_begin);
      }
    }
  }
}

}  // namespace
}  // namespace tilewright

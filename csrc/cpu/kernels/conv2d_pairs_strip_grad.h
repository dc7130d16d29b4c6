// The weights' gradient in pairs of bfloat16, and of float32 and float16 in parts of it, without patches: a strip of
// the image (conv2d_pairs_strip.h) is interleaved by pairs of positions, once from an even and once from an odd one,
// and so is right operand for every tap:
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

// Channels interleaved at once: 600 KB with the 1200 positions of a block of stride 1; of several parts half of both.
template <typename T>
constexpr int64_t kStripGradChannels = kPartsOf<T> == 1 ? 128 : 64;

// dy in the strip's order, turned dy, the strip of some channels, and its pairs from even and from odd positions; of
// each, a part behind the other.
template <typename T>
struct StripGradScratch {
  int64_t pixels, positions, channels;  // whole steps each
  int64_t rows, left, strip, panels;    // values of a part; `panels` of one of the two
  StripGradScratch(const ConvWindow& window, const PhaseLayout& layout, int64_t channels_in_all, int64_t filters,
                   int64_t block_rows) {
    constexpr int64_t kWhole = 32;  // of a tile unit's steps; what is less is a divisor
    const auto whole = [](int64_t n) { return (n + kWhole - 1) / kWhole * kWhole; };
    pixels = whole((block_rows - 1) * layout.pitch + window.width);
    // The last tap's last step reads less than a row and a step behind the strip.
    positions = whole(layout.size + layout.pitch + kWhole);
    channels = whole(smaller(channels_in_all, kStripGradChannels<T>));
    rows = pixels * whole(filters) + kWhole;
    left = tile_count(filters) * left_tile_size(pairs_of(pixels)) * 2 + kWhole;
    strip = (positions + 1) * channels;
    panels = positions * channels;
  }
  int64_t bytes() const { return kPartsOf<T> * (rows + left + strip + 2 * panels) * int64_t{sizeof(BF16)}; }
};

template <typename T>
int64_t conv_strip_grad_bytes(const ConvWindow& window, int64_t channels, int64_t filters, int64_t rows) {
  return StripGradScratch<T>(window, PhaseLayout(window, rows), channels, filters, rows).bytes();
}

// Rows of dy, filters of each pixel side by side, as a left operand of pairs of pixels.
template <typename T>
inline void turn_strip_rows(const T* grad, int64_t grad_row, const ConvWindow& window, int64_t rows, int64_t pitch,
                            int64_t filters, const StripGradScratch<T>& sizes, BF16* copy, Pair* left) {
  BF16* to = copy;
  for (int64_t y = 0; y < rows; ++y, to += pitch * filters) {
    for (int64_t x = 0; x < window.width; ++x, grad += grad_row) {
      put_values(to + x * filters, sizes.rows, grad, filters);
    }
    const int64_t end = y + 1 < rows ? pitch : sizes.pixels - y * pitch;
    clear_parts<T>(to + window.width * filters, sizes.rows, (end - window.width) * filters);
  }
  const RowTiles tiles{filters, tile_count(filters)};
  for (int64_t part = 0; part < kPartsOf<T>; ++part) {
    copy_left(copy + part * sizes.rows, 1, filters, tiles, 0, tiles.count, sizes.pixels, left + part * sizes.left / 2);
  }
}

// What a block reads of some channels, as panels: of all parts from even, then from odd positions. A single tap reads
// from even ones only.
template <typename T>
inline void pack_strip_panels(const ConvPairsGradArgs<T>& args, const T* image, const PhaseLayout& layout, int64_t row,
                              int64_t channels, const StripGradScratch<T>& sizes, BF16* strip, BF16* panels) {
  const ConvWindow& window = args.window;
  const int64_t pixel = strip_pixel(channels), sets = window.rows * window.cols > 1 ? 2 : 1;
  copy_strip(args.in, image, window, layout, row, channels, /*joined=*/false, strip, sizes.strip);
  clear_parts<T>(strip + layout.size * pixel, sizes.strip, (sizes.positions + 1 - layout.size) * pixel);
  for (int64_t odd = 0; odd < sets; ++odd) {
    for (int64_t part = 0; part < kPartsOf<T>; ++part) {
      pack_right(sizes.positions, channels, strip + part * sizes.strip + odd * pixel, pixel, int64_t{1},
                 reinterpret_cast<Pair*>(panels + (odd * kPartsOf<T> + part) * sizes.panels));
    }
  }
}

// Blocks [block_begin, block_end) of `block_rows` output rows, counted through all images, of all groups; filters as in
// conv_pairs_weight_grad. offsets: of the taps, for whole blocks.
template <typename T>
void conv_strip_weight_grad(const ConvPairsGradArgs<T>& args, int64_t block_rows, int64_t block_begin,
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
    const StripGradScratch<T> sizes(window, layout, C, filters, rows);
    find_tap_offsets(window, layout, offsets);
    BF16* copy = static_cast<BF16*>(scratch);
    Pair* left = reinterpret_cast<Pair*>(copy + kPartsOf<T> * sizes.rows);
    BF16* strip = copy + kPartsOf<T> * (sizes.rows + sizes.left);
    BF16* panels = strip + kPartsOf<T> * sizes.strip;
    const auto panels_of = [&](int64_t t) {
      const BF16* set = panels + offsets[t] % 2 * kPartsOf<T> * sizes.panels;
      return reinterpret_cast<const Pair*>(set) + offsets[t] / 2 * kPairPanel;
    };
    for (int64_t group = 0; group < args.groups; ++group) {
      const int64_t first = group * args.filters + filter_begin;
      turn_strip_rows(args.grad + (n * window.height + row) * window.width * args.grad_row + first, args.grad_row,
                      window, rows, layout.pitch, filters, sizes, copy, left);
      for (int64_t c = 0; c < C; c += kStripGradChannels<T>) {
        const int64_t channels = smaller(C - c, kStripGradChannels<T>);
        pack_strip_panels(args, args.in.data + n * args.in.n_stride + group * C + c, layout, row, channels, sizes,
                          strip, panels);
        add_products<T>(
            filters, taps, channels, sizes.pixels,
            {left, pairs_of(sizes.pixels), sizes.positions / 2 * kPairPanel, sizes.left / 2, sizes.panels / 2},
            panels_of, PairGradSums{args.sums + first * taps * C + c, taps * C, C}, block > block_begin);
      }
    }
  }
}

// Sums of the chunks, [chunk][filter][tap][channel], added in order, to weights of filters [begin, end). Returns their
// SumCheck.
template <typename T>
float finish_pair_weights(const ConvPairsSums& args, int64_t chunks, int64_t filter_begin, int64_t filter_end,
                          bool channels_last, T* weights) {
  const int64_t taps = args.taps, C = args.channels, K = taps * C, chunk_size = args.filters * K;
  SumCheck check;
  for (int64_t f = filter_begin; f < filter_end; ++f) {
    float* sums = args.data + f * K;
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      for_each_vector<float>(K, [&](int64_t k, int64_t n) TILEWRIGHT_INLINE {
        store(sums + k, load(sums + k, n) + load(sums + chunk * chunk_size + k, n), n);
      });
    }
    T* out = weights + f * K;
    for_each_vector<float>(K, [&](int64_t k, int64_t n) TILEWRIGHT_INLINE {
      const VecF32 sum = load(sums + k, n);
      check.add(sum);
      if (channels_last) store(out + k, sum, n);
    });
    if (channels_last) continue;
    for (int64_t t = 0; t < taps; ++t) {
      for_each_vector<float>(C, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
        T lanes[kLanes<float>];
        store(lanes, load(sums + t * C + c, n));
        for (int64_t i = 0; i < n; ++i) out[(c + i) * taps + t] = lanes[i];
      });
    }
  }
  return check.magnitude();
}

}  // namespace
}  // namespace tilewright

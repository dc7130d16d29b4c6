// Convolution of pairs of bfloat16 without patches: the part of the image that a block of output rows reads is copied
// once, in phases (conv2d_phases.h), whole pixels of `channels` values. Rows of a tile are then neighbouring pixels of
// the strip, for every tap:
//
//   out[p, f] = sum over taps t and channels c of strip[offset_t + p, c] * weights[(t, c), f]
//
// Tiles are whole ones: what they compute behind the last pixel, and between two rows of pixels, is dropped.
#pragma once
#include "cpu/kernels/conv2d_pairs.h"
#include "cpu/kernels/conv2d_phases.h"

namespace tilewright {
namespace {

inline int64_t strip_tiles(const PhaseLayout& layout, const ConvWindow& window, int64_t rows) {
  return tile_count((rows - 1) * layout.pitch + window.width);
}

// Filters computed at once: the sums of one tile of pixels stay in L1 (18 KB).
constexpr int64_t kStripFilters = 128;
inline int64_t strip_sums_row(int64_t filters) { return pair_sums_row(smaller(filters, kStripFilters)); }

// Offsets of the taps, the strip with what the last tile reads behind it, sums.
struct StripScratch {
  int64_t offsets, strip, sums;  // bytes of each
  StripScratch(const ConvWindow& window, const PhaseLayout& layout, int64_t channels, int64_t filters)
      : offsets((window.rows * window.cols * int64_t{sizeof(int32_t)} + 63) / 64 * 64),
        strip((layout.size + kTileRows) * channels * int64_t{sizeof(BF16)}),
        sums(kTileRows * strip_sums_row(filters) * int64_t{sizeof(float)}) {}
  int64_t bytes() const { return offsets + strip + sums; }
};

// Values of one pixel in the strip: whole steps.
inline int64_t strip_pixel(int64_t channels) { return (channels + kPairStep - 1) / kPairStep * kPairStep; }

inline int64_t conv_strip_bytes(const ConvWindow& window, int64_t channels, int64_t filters, int64_t rows) {
  return StripScratch(window, PhaseLayout(window, rows), strip_pixel(channels), filters).bytes();
}

// One row of one phase: `pitch` pixels, every stride-th of the image's row from position x on, zeros outside.
inline void copy_strip_row(const ConvImages<const BF16>& in, const BF16* row, int64_t x, int64_t stride, int64_t pitch,
                           int64_t channels, BF16* dst) {
  const int64_t pixel = strip_pixel(channels);
  const int64_t low = x >= 0 ? 0 : smaller((-x + stride - 1) / stride, pitch);
  const int64_t end = in.width <= x ? 0 : smaller((in.width - x + stride - 1) / stride, pitch);
  const int64_t high = larger(low, end);
  clear_values(dst, low * pixel);
  const BF16* from = row + (x + low * stride) * in.x_stride;
  if (stride == 1 && pixel == channels && in.x_stride == channels) {
    copy_values<false>(dst + low * pixel, from, (high - low) * pixel);
  } else {
    for (int64_t p = low; p < high; ++p, from += stride * in.x_stride) {
      copy_values<false>(dst + p * pixel, from, channels);
      if (pixel > channels) clear_values(dst + p * pixel + channels, pixel - channels);
    }
  }
  clear_values(dst + high * pixel, (pitch - high) * pixel);
}

inline void copy_strip(const ConvImages<const BF16>& in, const BF16* image, const ConvWindow& window,
                       const PhaseLayout& layout, int64_t row, int64_t channels, BF16* strip) {
  const int64_t first_y = row * window.stride_y + window.first_y;
  for (int64_t vertical = 0; vertical < window.stride_y; ++vertical) {
    for (int64_t phase = 0; phase < window.stride_x; ++phase) {
      for (int64_t v = 0; v < layout.height; ++v, strip += layout.pitch * strip_pixel(channels)) {
        const int64_t iy = first_y + v * window.stride_y + vertical;
        if (iy < 0 || iy >= in.height) {
          clear_values(strip, layout.pitch * strip_pixel(channels));
        } else {
          copy_strip_row(in, image + iy * in.y_stride, window.first_x + phase, window.stride_x, layout.pitch, channels,
                         strip);
        }
      }
    }
  }
}

// A block of output rows of one image, its strip copied.
struct StripBlock {
  int64_t n, row, rows;  // image, first row of the output, rows
  PhaseLayout layout;
  const int32_t* offsets;
  const BF16* strip;
  float* sums;
  int64_t sums_row;
};

// The sums of tile number `index` for filters [filter, filter + filters) of a group.
inline void sum_strip_tile(const ConvPairsArgs<BF16>& args, const StripBlock& block, int64_t index, const Pair* weights,
                           int64_t filters) {
  const int64_t taps = args.window.rows * args.window.cols, elements = strip_pixel(args.channels) / 2;
  const Pair* left = reinterpret_cast<const Pair*>(block.strip) + index * kTileRows * elements;
  for (int64_t f = 0; f < filters; f += kPairPanel) {
    const auto tile = filters - f > kLanes<float> ? gemm_stretches<Pair, kTileVectors> : gemm_stretches<Pair, 1>;
    tile(taps, block.offsets, elements, left, elements, weights + f * taps * elements, block.sums + f, block.sums_row);
  }
}

// Its pixels to the output, from filter `first` of all on. Returns whether all sums are finite, if asked to check.
inline bool finish_strip_tile(const ConvPairsArgs<BF16>& args, const StripBlock& block, int64_t tile, int64_t first,
                              int64_t filters) {
  const ConvImages<BF16>& out = args.out;
  const float* bias = args.epilogue.bias != nullptr ? args.epilogue.bias + first : nullptr;
  const float* sums = block.sums;
  int64_t y = tile * kTileRows / block.layout.pitch, x = tile * kTileRows % block.layout.pitch;
  VecF32 check{};
  for (int64_t p = 0; p < kTileRows && y < block.rows; ++p, sums += block.sums_row) {
    if (x < args.window.width) {
      const int64_t place = block.n * out.n_stride + (block.row + y) * out.y_stride + x * out.x_stride + first;
      finish_row<BF16>(args.epilogue, sums, filters, bias, 0.0f, place, out.data, 1);
      if (args.checks) {
        for_each_vector<float>(
            filters, [&](int64_t f, int64_t n) TILEWRIGHT_INLINE { check = fma(load(sums + f, n), VecF32{}, check); });
      }
    }
    if (++x == block.layout.pitch) {
      x = 0;
      ++y;
    }
  }
  return reduce_add<float>(check) == 0.0f;
}

inline bool conv_strip(const ConvPairsArgs<BF16>& args, int64_t n, int64_t row_begin, int64_t row_end,
                       int64_t filter_begin, int64_t filter_end, void* scratch) {
  const TileUnitScope unit;
  const ConvWindow& window = args.window;
  const int64_t C = args.channels, taps = window.rows * window.cols, elements = strip_pixel(C) / 2;
  const int64_t rows = row_end - row_begin, panels = (args.filters + kPairPanel - 1) / kPairPanel;
  const PhaseLayout layout(window, rows);
  const StripScratch parts(window, layout, strip_pixel(C), filter_end - filter_begin);
  auto* offsets = static_cast<int32_t*>(scratch);
  auto* strip = reinterpret_cast<BF16*>(static_cast<char*>(scratch) + parts.offsets);
  auto* sums = reinterpret_cast<float*>(static_cast<char*>(scratch) + parts.offsets + parts.strip);
  find_tap_offsets(window, layout, offsets);
  for (int64_t t = 0; t < taps; ++t) offsets[t] *= static_cast<int32_t>(elements);
  const StripBlock block{n, row_begin, rows, layout, offsets, strip, sums, strip_sums_row(filter_end - filter_begin)};
  bool finite = true;
  for (int64_t group = 0; group < args.groups; ++group) {
    copy_strip(args.in, args.in.data + n * args.in.n_stride + group * C, window, layout, row_begin, C, strip);
    const Pair* weights = static_cast<const Pair*>(args.weight) + group * panels * kPairPanel * taps * elements;
    for (int64_t filter = filter_begin; filter < filter_end; filter += kStripFilters) {
      const int64_t filters = smaller(kStripFilters, filter_end - filter);
      for (int64_t tile = 0; tile < strip_tiles(layout, window, rows); ++tile) {
        sum_strip_tile(args, block, tile, weights + filter * taps * elements, filters);
        finite = finish_strip_tile(args, block, tile, group * args.filters + filter, filters) && finite;
      }
    }
  }
  return finite;
}

}  // namespace
}  // namespace tilewright

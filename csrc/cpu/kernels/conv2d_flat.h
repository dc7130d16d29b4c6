// Planes without patches: the part of each channel that a block of output rows reads is copied once, in phases
// (conv2d_phases.h). The right operand of the product is then read in place, from rows that start anywhere.
#pragma once
#include "cpu/kernels/conv2d_epilogue.h"
#include "cpu/kernels/conv2d_pack.h"
#include "cpu/kernels/conv2d_phases.h"

namespace tilewright {
namespace {

// clear: also write the zeros of the padding, which stay valid for every plane copied over the last one.
template <typename T>
void copy_phases(const ConvImages<const T>& in, const T* plane, const ConvWindow& window, const PhaseLayout& layout,
                 int64_t row, bool clear, Acc<T>* phases) {
  const int64_t stride = window.stride_x, first_y = row * window.stride_y + window.first_y;
  for (int64_t phase = 0; phase < stride; ++phase) {
    const int64_t ix = window.first_x + phase;
    const int64_t low = ix >= 0 ? 0 : smaller((-ix + stride - 1) / stride, layout.pitch);
    const int64_t end = in.width <= ix ? 0 : smaller((in.width - ix + stride - 1) / stride, layout.pitch);
    const int64_t high = larger(low, end);
    int64_t vertical = 0;  // u % stride_y, beside u / stride_y
    Acc<T>* dst = phases + phase * layout.height * layout.pitch;
    const int64_t phase_step = stride * layout.height * layout.pitch;
    for (int64_t u = 0; u < layout.height * window.stride_y; ++u) {
      const int64_t iy = first_y + u;
      Acc<T>* to = dst + vertical * phase_step;
      if (iy < 0 || iy >= in.height) {
        if (clear) fill_zero(to, layout.pitch);
      } else {
        if (clear) {
          fill_zero(to, low);
          fill_zero(to + high, layout.pitch - high);
        }
        copy_strided(to + low, plane + iy * in.y_stride + (ix + low * stride) * in.x_stride, stride * in.x_stride,
                     high - low);
      }
      if (++vertical == window.stride_y) {
        vertical = 0;
        dst += layout.pitch;
      }
    }
  }
}

// block[f][p] (+)= sum over channels and taps of weight[(c, t)][f] * phases[c][offset_t + p], for kRows filters and
// kVectors vectors of pixels. Each call sums on its own first: blocks of k keep chains short.
template <typename A, int kRows, int kVectors>
void flat_tile(int64_t channels, int64_t taps, const A* weight, const A* phases, int64_t channel_step,
               const int32_t* offsets, A* block, int64_t block_row, bool accumulate) {
  TileSums<A, kRows, kVectors> sums;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      sums.add(weight, 1, phases + c * channel_step + offsets[t]);
      weight += kTileCols<A>;
    }
  }
  sums.store_to(block, block_row, kVectors * kLanes<A>, {accumulate});
}

template <typename A>
using FlatTile = void (*)(int64_t, int64_t, const A*, const A*, int64_t, const int32_t*, A*, int64_t, bool);
template <typename A, int kVectors, int kRows = kTileRows>
inline FlatTile<A> flat_tile_for(int64_t rows) {
  if constexpr (kRows == 1) {
    return flat_tile<A, 1, kVectors>;
  } else {
    return rows == kRows ? flat_tile<A, kRows, kVectors> : flat_tile_for<A, kVectors, kRows - 1>(rows);
  }
}

constexpr int64_t kFlatFilters = 128;  // filters of one block of results
constexpr int64_t kFlatSlack = 64;     // whole vectors are read and written behind the last pixel

inline int64_t flat_length(const PhaseLayout& layout, const ConvWindow& window, int64_t rows) {
  return ((rows - 1) * layout.pitch + window.width + kFlatSlack - 1) / kFlatSlack * kFlatSlack;
}

// Offsets, phases of all channels, block of results.
inline int64_t conv_flat_scratch(const ConvWindow& window, int64_t channels, int64_t filters, int64_t rows) {
  const PhaseLayout layout(window, rows);
  return window.rows * window.cols + 2 * kFlatSlack + channels * layout.size +
         smaller(filters, kFlatFilters) * flat_length(layout, window, rows);
}

template <typename T>
void conv_flat_rows(const ConvGemmArgs<T>& args, int64_t n, int64_t row_begin, int64_t row_end, int64_t filter_begin,
                    int64_t filter_end, Acc<T>* scratch) {
  using A = Acc<T>;
  const ConvWindow& window = args.window;
  const int64_t rows = row_end - row_begin, taps = window.rows * window.cols, K = taps * args.channels;
  const PhaseLayout layout(window, rows);
  int32_t* offsets = reinterpret_cast<int32_t*>(scratch);
  A* phases = scratch + (taps + 15) / 16 * 16;
  A* block = phases + args.channels * layout.size + kFlatSlack;
  const int64_t length = (rows - 1) * layout.pitch + window.width, block_row = flat_length(layout, window, rows);
  find_tap_offsets(window, layout, offsets);
  for (int64_t c = 0; c < args.channels; ++c) {
    const T* plane = args.in.data + n * args.in.n_stride + c * args.in.c_stride;
    copy_phases(args.in, plane, window, layout, row_begin, /*clear=*/true, phases + c * layout.size);
  }
  const int64_t channel_block = larger(1, kConvBlockK / taps);
  for (int64_t filter = filter_begin; filter < filter_end; filter += kFlatFilters) {
    const int64_t filters = smaller(kFlatFilters, filter_end - filter);
    for (int64_t c = 0; c < args.channels; c += channel_block) {
      const int64_t channels = smaller(channel_block, args.channels - c);
      for (int64_t p = 0; p < length; p += kTileCols<A>) {
        const bool wide = length - p > kLanes<A>;
        for (int64_t f = 0; f < filters; f += kTileCols<A>) {
          const int64_t width = smaller(kTileCols<A>, filters - f), tiles = tile_count(width);
          const A* weight = args.weight + (filter + f) * K + c * taps * kTileCols<A>;
          for (int64_t i = 0; i < tiles; ++i) {
            const int64_t first = width * i / tiles, count = width * (i + 1) / tiles - first;
            const FlatTile<A> tile = wide ? flat_tile_for<A, kTileVectors>(count) : flat_tile_for<A, 1>(count);
            tile(channels, taps, weight + first, phases + c * layout.size + p, layout.size, offsets,
                 block + (f + first) * block_row + p, block_row, c > 0);
          }
        }
      }
    }
    for (int64_t f = 0; f < filters; ++f) {
      const A bias = args.epilogue.bias != nullptr ? args.epilogue.bias[filter + f] : A(0);
      for (int64_t y = 0; y < rows; ++y) {
        const int64_t place =
            n * args.out.n_stride + (filter + f) * args.out.c_stride + (row_begin + y) * args.out.y_stride;
        finish_row<T>(args.epilogue, block + f * block_row + y * layout.pitch, window.width, nullptr, bias, place,
                      args.out.data, args.out.x_stride);
      }
    }
  }
}

}  // namespace
}  // namespace tilewright

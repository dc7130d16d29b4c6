// Convolution of channels_last images without patches: each row of a register tile is a pixel, and reads its patch
// through pointers (conv2d_row_table.h).
//
//   out[pixel, f] (+)= sum over runs and elements of table[run][pixel][element] * weight[k][f]
//
// Tiles are as wide as the filters allow: 6 pixels x 64 filters, 9 x 48, 10 x 32 of AVX-512's vectors. The result may
// be planes: blocks of sums are then transposed on their way out of cache.
#pragma once
#include "cpu/kernels/conv2d_epilogue.h"
#include "cpu/kernels/conv2d_row_table.h"

namespace tilewright {
namespace {

// --- tiles: as many accumulators as there are registers, as wide as the filters allow ---

// Registers: accumulators, one panel row, one broadcast. Not more rows than there are general registers for pointers.
constexpr int most_rows(int vectors, int most) {
  const int rows = (kVectorRegisters - 1 - vectors) / vectors;
  return rows < most ? rows : most;
}
template <int kVectors>
constexpr int kRowTileRows = most_rows(kVectors, 10);

template <typename A>
inline ConvRowPanels row_panels(int64_t filters) {
  return ConvRowPanels(filters, kLanes<A>, kRowVectors);
}

// A stretch of k: `count` of them from element `offset` of run `run` on.
struct RunStretch {
  int64_t run, offset, count, length;
};

// c[row][f] (+)= sum over the stretch of table[run][row][element] * weight[k][f]. A run that lies outside of the image
// for all rows is left out: dilations near the size of the image read mostly padding.
template <typename A, int kRows, int kVectors>
void conv_rows_tile(const RunStretch& stretch, const A* const* table, int64_t table_row, const A* zeros,
                    int64_t group_offset, const A* weight, A* c, int64_t c_row, int64_t n, bool accumulate) {
  TileSums<A, kRows, kVectors> sums;
  int64_t offset = stretch.offset;
  table += stretch.run * table_row;
  for (int64_t left = stretch.count; left > 0; table += table_row, offset = 0) {
    const int64_t count = smaller(stretch.length - offset, left);
    left -= count;
    bool outside = true;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) outside &= table[i] == zeros;
    if (outside) {
      weight += count * kVectors * kLanes<A>;
      continue;
    }
    const A* rows[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) rows[i] = table[i] + group_offset + offset;
    for (int64_t k = 0; k < count; ++k, weight += kVectors * kLanes<A>) sums.add_rows(rows, k, weight);
  }
  sums.store_to(c, c_row, n, TileEnd<A>{accumulate});
}

template <typename A>
using ConvRowsTile = void (*)(const RunStretch&, const A* const*, int64_t, const A*, int64_t, const A*, A*, int64_t,
                              int64_t, bool);
template <typename A, int kVectors, int kRows = kRowTileRows<kVectors>>
inline ConvRowsTile<A> conv_rows_tile_for(int64_t rows) {
  if constexpr (kRows == 1) {
    return conv_rows_tile<A, 1, kVectors>;
  } else {
    return rows == kRows ? conv_rows_tile<A, kRows, kVectors> : conv_rows_tile_for<A, kVectors, kRows - 1>(rows);
  }
}

// Calls body(integral constant) for a width of 1 ... kRowVectors.
template <int kVectors>
struct VectorCount {
  static constexpr int value = kVectors;
};
template <int kVectors = kRowVectors, typename Body>
inline TILEWRIGHT_INLINE void for_width(int64_t width, const Body& body) {
  if constexpr (kVectors > 1) {
    if (width < kVectors) return for_width<kVectors - 1>(width, body);
  }
  body(VectorCount<kVectors>{});
}

// --- forward ---

// Weights of one group to panels of row tiles: [panel][k][the panel's columns].
template <typename T>
void pack_row_weights(const ConvWeights<const T>& weights, int64_t K, int64_t panel_begin, int64_t panel_end,
                      Acc<T>* packed) {
  using A = Acc<T>;
  const ConvRowPanels panels = row_panels<A>(weights.filters);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t first = panels.filter(panel), width = panels.width(panel) * kLanes<A>;
    for (int64_t f = 0; f < width; f += kLanes<A>) pack_filters(weights, first + f, packed + first * K + f, width);
  }
}

// A panel's block of k lies in L1 while tiles pass over it (32 KB, all of which older machines have, two thirds of
// newer ones: pixels come once), and its sums are not so long that their rounding shows (native's are blocked as well).
constexpr int64_t kRowWeightBytes = 32 * 1024, kLongestRowChain = 192;

// A block of sums [pixel][kWidth] to planes; rows of an image that follow each other are one run.
template <typename T, int64_t kWidth>
void finish_planes(const ConvRowsArgs<T>& args, const Acc<T>* block, int64_t pixel, int64_t pixels, int64_t filter,
                   int64_t filters, const Acc<T>* bias) {
  constexpr int64_t kStep = kLanes<Acc<T>>;
  const ConvImages<T>& out = args.out;
  ConvWindow runs = args.window;
  if (out.y_stride == runs.width) {
    runs.width *= runs.height;
    runs.height = 1;
  }
  for (int64_t f = 0; f < filters; f += kStep) {  // few planes, and so few pages, at a time
    for_each_pixel_run(out, runs, pixel, pixels, [&](int64_t offset, int64_t at, int64_t run) {
      const int64_t place = offset + (filter + f) * out.c_stride;
      for (int64_t i = 0; i < run; i += kStep) {
        const Acc<T>* first = block + (at + i) * kWidth + f;
        finish_transposed<T>(
            args.epilogue, [=](int64_t row) TILEWRIGHT_INLINE { return first + row * kWidth; }, smaller(kStep, run - i),
            smaller(kStep, filters - f), bias != nullptr ? bias + f : nullptr, place + i, out.data, out.c_stride);
      }
    });
  }
}

// The next group's channels and filters are other lines of the same pixels, and no stream for a processor to follow:
// asks for those of `rows` pixels (what it gains: docs/conv2d.md). The first and the last tap meet every row of the
// images that the pixels read. out: where results are to be written, or null.
template <typename A>
inline void prefetch_next_group(const RowRuns& runs, const RowTable<A>& table, int64_t row, int64_t rows,
                                int64_t group_offset, const A* out, int64_t out_row) {
  const A* const* first = table.at + row;
  const A* const* last = first + (runs.count - 1) * table.pixels;
  for (int64_t i = 0; i < rows; ++i) {
    prefetch_line(first[i] + group_offset);
    if (runs.count > 1) prefetch_line(last[i] + group_offset);
    if (out != nullptr) prefetch_line(out + i * out_row);
  }
}

// One panel of filters of one group.
template <typename T, int kVectors>
void conv_rows_panel(const ConvRowsArgs<T>& args, const RowRuns& runs, const RowTable<Acc<T>>& table, int64_t group,
                     int64_t pixel, const Acc<T>* weight, int64_t filter, int64_t filters, Acc<T>* block) {
  using A = Acc<T>;
  constexpr int64_t kWidth = kVectors * kLanes<A>, kFitting = kRowWeightBytes / (kWidth * int64_t{sizeof(A)});
  constexpr int64_t kDepth = kFitting < kLongestRowChain ? kFitting : kLongestRowChain;
  const ConvImages<T>& out = args.out;
  const ConvWindow& window = args.window;
  const int64_t K = runs.count * runs.length, blocks = larger(1, (K + kDepth - 1) / kDepth), pixels = table.pixels;
  const int64_t group_filter = group * args.filters + filter;
  int64_t block_row = kWidth;
  bool direct = false;
  if constexpr (sizeof(T) == sizeof(A)) {
    // Pixels evenly spaced through all images: the product is written where it belongs.
    direct = out.c_stride == 1 && out.y_stride == out.x_stride * window.width &&
             out.n_stride == out.y_stride * window.height;
    if (direct) {
      block = out.data + pixel * out.x_stride + group_filter;
      block_row = out.x_stride;
    }
  }
  constexpr int64_t kMost = kRowTileRows<kVectors>;
  const int64_t tiles = (pixels + kMost - 1) / kMost;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t k = K * b / blocks, count = K * (b + 1) / blocks - k, run = runs.length > 0 ? k / runs.length : 0;
    const RunStretch stretch{run, k - run * runs.length, count, runs.length};
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = pixels * t / tiles, rows = pixels * (t + 1) / tiles - row;
      if (b == 0 && group + 1 < args.groups) {
        prefetch_next_group(runs, table, row, rows, (group + 1) * args.channels,
                            direct ? block + row * block_row + args.filters : nullptr, block_row);
      }
      conv_rows_tile_for<A, kVectors>(rows)(stretch, table.at + row, pixels, table.zeros, group * args.channels,
                                            weight + k * kWidth, block + row * block_row, block_row, filters, b > 0);
    }
  }
  if (direct && args.epilogue.empty()) return;
  const A* bias = args.epilogue.bias != nullptr ? args.epilogue.bias + group_filter : nullptr;
  if (out.c_stride != 1) {
    return finish_planes<T, kWidth>(args, block, pixel, pixels, group_filter, filters, bias);
  }
  for_each_pixel_run(out, window, pixel, pixels, [&](int64_t offset, int64_t at, int64_t run) {
    for (int64_t i = 0; i < run; ++i) {
      const int64_t place = offset + i * out.x_stride + group_filter;
      finish_row<T>(args.epilogue, block + (at + i) * block_row, filters, bias, A(0), place, out.data, 1);
    }
  });
}

template <typename T>
void conv_rows(const ConvRowsArgs<T>& args, int64_t pixel_begin, int64_t pixel_end, int64_t panel_begin,
               int64_t panel_end, Acc<T>* scratch) {
  using A = Acc<T>;
  const RowRuns runs = row_runs(args.window, args.groups, args.channels, args.in.x_stride);
  const ConvRowPanels panels = row_panels<A>(args.filters);
  const int64_t pixels = pixel_end - pixel_begin, K = runs.count * runs.length;
  const RowTable<A> table =
      make_table(args.in, args.window, runs, pixel_begin, pixels, scratch, pixels * kRowVectors * kLanes<A>);
  for (int64_t group = 0; group < args.groups; ++group) {
    const A* weight = args.weight + group * panels.filters() * K;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const int64_t filter = panels.filter(panel);
      const int64_t filters = smaller(args.filters - filter, panels.width(panel) * kLanes<A>);
      for_width(panels.width(panel), [&](auto vectors) {
        conv_rows_panel<T, vectors.value>(args, runs, table, group, pixel_begin, weight + filter * K, filter, filters,
                                          scratch);
      });
    }
  }
}

}  // namespace
}  // namespace tilewright

// The weights' gradient of channels_last images without patches (conv2d_rows.h): rows of a tile are elements of a run,
//
//   sums[k, f] (+)= sum over pixels of table[run][pixel][element] * dy[pixel, f]
//
// and dy's pixels a packed panel.
#pragma once
#include "cpu/kernels/conv2d_rows.h"

namespace tilewright {
namespace {

// Rows of a weight's gradient lie side by side.
template <int kVectors>
constexpr int kGradTileRows = most_rows(kVectors, 16);

// c[i][f] (+)= sum over pixels of table[pixel][i] * grad[pixel][f], i over kRows elements of a run from `offset` on.
template <typename A, int kRows, int kVectors>
void conv_rows_grad_tile(int64_t pixels, const A* const* table, int64_t offset, const A* grad, A* c, int64_t c_row,
                         bool accumulate) {
  TileSums<A, kRows, kVectors> sums;
  for (int64_t p = 0; p < pixels; ++p) {
    const A* row = table[p] + offset;
    asm("" : "+r"(row));  // else GCC keeps `offset + i` of all rows in registers, and spills them
    sums.add(row, 1, grad + p * kVectors * kLanes<A>);
  }
  sums.store_to(c, c_row, kVectors * kLanes<A>, TileEnd<A>{accumulate});
}

template <typename A>
using ConvRowsGradTile = void (*)(int64_t, const A* const*, int64_t, const A*, A*, int64_t, bool);
template <typename A, int kVectors, int kRows = kGradTileRows<kVectors>>
inline ConvRowsGradTile<A> conv_rows_grad_tile_for(int64_t rows) {
  if constexpr (kRows == 1) {
    return conv_rows_grad_tile<A, 1, kVectors>;
  } else {
    return rows == kRows ? conv_rows_grad_tile<A, kRows, kVectors>
                         : conv_rows_grad_tile_for<A, kVectors, kRows - 1>(rows);
  }
}

template <typename A, int kVectors>
void conv_rows_grad_panel(const RowRuns& runs, const RowTable<A>& table, int64_t group_offset, const A* grad,
                          int64_t k_begin, int64_t k_end, A* sums, int64_t sums_stride, bool accumulate) {
  constexpr int64_t kMost = kGradTileRows<kVectors>;
  for (int64_t k = k_begin; k < k_end;) {
    const int64_t run = k / runs.length, offset = k - run * runs.length;
    const int64_t count = smaller(runs.length - offset, k_end - k), tiles = (count + kMost - 1) / kMost;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = count * t / tiles, rows = count * (t + 1) / tiles - first;
      conv_rows_grad_tile_for<A, kVectors>(rows)(table.pixels, table.at + run * table.pixels,
                                                 group_offset + offset + first, grad,
                                                 sums + (k - k_begin + first) * sums_stride, sums_stride, accumulate);
    }
    k += count;
  }
}

// Filters `filter` and on of dy, `filters` of them and zeros behind: panel[pixel][kVectors vectors].
template <typename T, int kVectors>
void pack_grad_rows(const ConvImages<const T>& grad, int64_t pixel, int64_t pixels, int64_t filter, int64_t filters,
                    Acc<T>* panel) {
  using A = Acc<T>;
  constexpr int64_t kWidth = kVectors * kLanes<A>;
  const ConvWindow pixels_of_grad{grad.height, grad.width, 1, 1, 1, 1, 0, 0, 1, 1};
  for_each_pixel_run(grad, pixels_of_grad, pixel, pixels, [&](int64_t offset, int64_t at, int64_t count) {
    const T* from = grad.data + offset + filter;
    for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
      for (int64_t j = 0; j < kWidth; j += kLanes<A>) {
        const int64_t width = filters - j;
        A* to = panel + (at + i) * kWidth + j;
        const T* source = from + i * grad.x_stride + j;
        store(to, width >= kLanes<A> ? load(source) : width > 0 ? load(source, width) : Vec<A>{});
      }
    }
  });
}

// sums[k][f] of one group over the pixels, k in [k_begin, k_end), panels of filters in the given range.
template <typename T>
void conv_rows_weight_grad(const ConvRowsGradArgs<T>& args, int64_t pixel_begin, int64_t pixel_end, int64_t k_begin,
                           int64_t k_end, int64_t panel_begin, int64_t panel_end, Acc<T>* scratch) {
  using A = Acc<T>;
  const RowRuns runs = row_runs(args.window, args.groups, args.channels, args.in.x_stride);
  const ConvRowPanels panels = row_panels<A>(args.filters);
  for (int64_t pixel = pixel_begin; pixel < pixel_end; pixel += kConvRowsGradPixels) {
    const int64_t pixels = smaller(kConvRowsGradPixels, pixel_end - pixel);
    const RowTable<A> table =
        make_table(args.in, args.window, runs, pixel, pixels, scratch, pixels * kRowVectors * kLanes<A>);
    for (int64_t group = 0; group < args.groups; ++group) {
      for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        const int64_t filter = panels.filter(panel);
        for_width(panels.width(panel), [&](auto vectors) {
          pack_grad_rows<T, vectors.value>(args.grad, pixel, pixels, group * args.filters + filter,
                                           args.filters - filter, scratch);
          A* sums = args.sums + group * args.sums_group + k_begin * args.sums_stride + filter;
          conv_rows_grad_panel<A, vectors.value>(runs, table, group * args.channels, scratch, k_begin, k_end, sums,
                                                 args.sums_stride, pixel > pixel_begin);
        });
      }
    }
  }
}

}  // namespace
}  // namespace tilewright

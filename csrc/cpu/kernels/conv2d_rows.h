// Convolution of channels_last images without patches: each row of a register tile is a pixel, and reads its patch
// through pointers.
//
//   table[run][pixel] -> the run's first element in the image          out[pixel, f] (+)= sum over runs and elements
//
//                pixel 0   1   2   3   4   5
//     run (0,0)    o   o   >   >   >   >         a run is one tap's channels; where those are few, a row of taps
//     run (0,1)    o   >   >   >   >   >         (neighbours in memory). o: outside of the image, a run of zeros
//     run (1,0)    o   o   >   >   >   >
//
// The same table serves the weight's gradient, whose tile has elements of a run as rows and sums over pixels. Padding,
// stride, dilation and the ends of images are in the table and nowhere else.
#pragma once
#include "cpu/kernels/conv2d_epilogue.h"
#include "cpu/kernels/conv2d_pack.h"

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
// Rows of a weight's gradient lie side by side.
template <int kVectors>
constexpr int kGradTileRows = most_rows(kVectors, 16);

template <typename A>
inline ConvRowPanels row_panels(int64_t filters) {
  return ConvRowPanels(filters, kLanes<A>, kRowVectors);
}

// A stretch of k: `count` of them from element `offset` of run `run` on.
struct RunStretch {
  int64_t run, offset, count, length;
};

// c[row][f] (+)= sum over the stretch of table[run][row][element] * weight[k][f].
template <typename A, int kRows, int kVectors>
void conv_rows_tile(const RunStretch& stretch, const A* const* table, int64_t table_row, int64_t group_offset,
                    const A* weight, A* c, int64_t c_row, int64_t n, bool accumulate) {
  TileSums<A, kRows, kVectors> sums;
  int64_t offset = stretch.offset;
  table += stretch.run * table_row;
  for (int64_t left = stretch.count; left > 0; table += table_row, offset = 0) {
    const int64_t count = smaller(stretch.length - offset, left);
    const A* rows[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) rows[i] = table[i] + group_offset + offset;
    for (int64_t k = 0; k < count; ++k, weight += kVectors * kLanes<A>) sums.add_rows(rows, k, weight);
    left -= count;
  }
  sums.store_to(c, c_row, n, TileEnd<A>{accumulate});
}

template <typename A>
using ConvRowsTile = void (*)(const RunStretch&, const A* const*, int64_t, int64_t, const A*, A*, int64_t, int64_t,
                              bool);
template <typename A, int kVectors, int kRows = kRowTileRows<kVectors>>
inline ConvRowsTile<A> conv_rows_tile_for(int64_t rows) {
  if constexpr (kRows == 1) {
    return conv_rows_tile<A, 1, kVectors>;
  } else {
    return rows == kRows ? conv_rows_tile<A, kRows, kVectors> : conv_rows_tile_for<A, kVectors, kRows - 1>(rows);
  }
}

// The weight's gradient: c[i][f] (+)= sum over pixels of table[pixel][i] * grad[pixel][f], i over kRows elements of a
// run from `offset` on.
template <typename A, int kRows, int kVectors>
void conv_rows_grad_tile(int64_t pixels, const A* const* table, int64_t offset, const A* grad, A* c, int64_t c_row,
                         bool accumulate) {
  TileSums<A, kRows, kVectors> sums;
  for (int64_t p = 0; p < pixels; ++p) sums.add(table[p] + offset, 1, grad + p * kVectors * kLanes<A>);
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

// --- the table ---

// How patches are cut into runs.
struct RowRuns {
  bool joined;  // a run is a row of taps
  int64_t count, length;
};
inline RowRuns row_runs(const ConvWindow& window, int64_t channels, int64_t x_stride) {
  constexpr int64_t kFewChannels = 32, kLongest = 128;
  const bool joined = window.step_x == 1 && x_stride == channels && window.cols > 1 && channels < kFewChannels &&
                      window.cols * channels <= kLongest;
  return joined ? RowRuns{true, window.rows, window.cols * channels}
                : RowRuns{false, window.rows * window.cols, channels};
}

template <typename A>
struct RowTable {
  const A** at;  // [run][pixels]
  int64_t pixels;
  const A* zeros;  // as many as a pixel has channels, of all groups, or a run elements
  A* edges;        // runs that are partly outside: copies
};

// First of `count` positions first, first + stride ... that is not below `limit`.
inline int64_t first_not_below(int64_t first, int64_t stride, int64_t limit, int64_t count) {
  if (first >= limit) return 0;
  const int64_t steps = stride == 1 ? limit - first : (limit - first + stride - 1) / stride;
  return smaller(steps, count);
}

// One row of taps that start at position x, some outside: a copy with zeros there.
template <typename A>
inline const A* copy_edge(RowTable<A>& table, const A* row, int64_t width, int64_t channels, int64_t x, int64_t cols) {
  const int64_t low = smaller(larger(0, -x), cols), high = larger(low, smaller(cols, width - x));
  A* copy = table.edges;
  table.edges += cols * channels;
  for (int64_t i = 0; i < low * channels; ++i) copy[i] = 0;
  for (int64_t i = low * channels; i < high * channels; ++i) copy[i] = row[x * channels + i];
  for (int64_t i = high * channels; i < cols * channels; ++i) copy[i] = 0;
  return copy;
}

// Pixels of one row of the output, `count` from x on, to the table's columns from `place` on.
template <typename A>
void fill_row_of_table(const ConvImages<const A>& in, const ConvWindow& window, const RowRuns& runs, const A* image,
                       int64_t y, int64_t x, int64_t count, int64_t place, RowTable<A>& table) {
  const int64_t stride = window.stride_x, step = stride * in.x_stride;
  for (int64_t r = 0; r < runs.count; ++r) {
    const int64_t i = runs.joined ? r : r / window.cols, j = runs.joined ? 0 : r % window.cols;
    const int64_t iy = y * window.stride_y + window.first_y + i * window.step_y;
    const int64_t ix = x * stride + window.first_x + j * window.step_x;
    const A** to = table.at + r * table.pixels + place;
    if (iy < 0 || iy >= in.height) {
      for (int64_t p = 0; p < count; ++p) to[p] = table.zeros;
      continue;
    }
    const A* row = image + iy * in.y_stride;
    const int64_t reach = runs.joined ? window.cols - 1 : 0;
    const int64_t low = first_not_below(ix, stride, 0, count);
    const int64_t high = larger(low, first_not_below(ix, stride, in.width - reach, count));
    const A* from = row + ix * in.x_stride;
    for (int64_t p = low; p < high; ++p) to[p] = from + p * step;
    for (int64_t p = 0; p < count; ++p) {
      if (p == low) p = high;
      if (p >= count) break;
      to[p] = runs.joined ? copy_edge(table, row, in.width, runs.length / window.cols, ix + p * stride, window.cols)
                          : table.zeros;
    }
  }
}

template <typename A>
void fill_table(const ConvImages<const A>& in, const ConvWindow& window, const RowRuns& runs, int64_t pixel,
                int64_t pixels, RowTable<A>& table) {
  int64_t x = pixel % window.width, y = pixel / window.width % window.height;
  int64_t n = pixel / (window.width * window.height);
  for (int64_t at = 0; at < pixels;) {
    const int64_t count = smaller(window.width - x, pixels - at);
    fill_row_of_table(in, window, runs, in.data + n * in.n_stride, y, x, count, at, table);
    at += count;
    x = 0;
    if (++y == window.height) {
      y = 0;
      ++n;
    }
  }
}

inline int64_t to_line(int64_t elements) { return (elements + 15) / 16 * 16; }

// Scratch: block of sums or of gradients, zeros, table, copied edges; in accumulators of 4 or 8 bytes.
template <typename A>
int64_t conv_rows_scratch(const ConvWindow& window, int64_t channels, int64_t x_stride, int64_t pixels) {
  constexpr int64_t kPointer = sizeof(A*) / sizeof(A);
  const RowRuns runs = row_runs(window, channels, x_stride);
  const int64_t edges = runs.joined ? pixels * runs.count * runs.length : 0;
  return to_line(pixels * kRowVectors * kLanes<A>) + to_line(larger(x_stride, runs.length)) +
         to_line(pixels * runs.count * kPointer) + edges + 16;
}

// The table of a block of pixels in scratch behind `behind` accumulators.
template <typename A>
RowTable<A> make_table(const ConvImages<const A>& in, const ConvWindow& window, const RowRuns& runs, int64_t pixel,
                       int64_t pixels, A* scratch, int64_t behind) {
  constexpr int64_t kPointer = sizeof(A*) / sizeof(A);
  A* zeros = scratch + to_line(behind);
  const int64_t zero_count = to_line(larger(in.x_stride, runs.length));
  fill_zero(zeros, zero_count);
  A* at = zeros + zero_count;
  RowTable<A> table{reinterpret_cast<const A**>(at), pixels, zeros, at + to_line(pixels * runs.count * kPointer)};
  fill_table(in, window, runs, pixel, pixels, table);
  return table;
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

// A panel's block of k lies in L1 while tiles pass over it (32 KB: half of what newer machines have, beside pixels that
// come once), and its sums are not so long that their rounding shows (native's are blocked as well).
constexpr int64_t kRowWeightBytes = 32 * 1024, kLongestRowChain = 192;

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
    direct = out.y_stride == out.x_stride * window.width && out.n_stride == out.y_stride * window.height;
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
      conv_rows_tile_for<A, kVectors>(rows)(stretch, table.at + row, pixels, group * args.channels, weight + k * kWidth,
                                            block + row * block_row, block_row, filters, b > 0);
    }
  }
  if (direct && args.epilogue.empty()) return;
  const A* bias = args.epilogue.bias != nullptr ? args.epilogue.bias + group_filter : nullptr;
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
  const RowRuns runs = row_runs(args.window, args.channels, args.in.x_stride);
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

// --- weight gradient ---

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

// sums[k][f] of one group over the pixels, k in [k_begin, k_end), panels of filters in the given range.
template <typename T>
void conv_rows_weight_grad(const ConvRowsGradArgs<T>& args, int64_t pixel_begin, int64_t pixel_end, int64_t k_begin,
                           int64_t k_end, int64_t panel_begin, int64_t panel_end, Acc<T>* scratch) {
  using A = Acc<T>;
  const RowRuns runs = row_runs(args.window, args.channels, args.in.x_stride);
  const ConvRowPanels panels = row_panels<A>(args.filters);
  const ConvImages<const T>& grad = args.grad;
  const ConvWindow pixels_of_grad{grad.height, grad.width, 1, 1, 1, 1, 0, 0, 1, 1};
  for (int64_t pixel = pixel_begin; pixel < pixel_end; pixel += kConvRowsGradPixels) {
    const int64_t pixels = smaller(kConvRowsGradPixels, pixel_end - pixel);
    const RowTable<A> table =
        make_table(args.in, args.window, runs, pixel, pixels, scratch, pixels * kRowVectors * kLanes<A>);
    for (int64_t group = 0; group < args.groups; ++group) {
      for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        const int64_t filter = panels.filter(panel);
        for_width(panels.width(panel), [&](auto vectors) {
          constexpr int64_t kWidth = vectors.value * kLanes<A>;
          const int64_t filters = smaller(args.filters - filter, kWidth);
          for_each_pixel_run(grad, pixels_of_grad, pixel, pixels, [&](int64_t offset, int64_t at, int64_t count) {
            const T* from = grad.data + offset + group * args.filters + filter;
            for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
              for (int64_t j = 0; j < kWidth; j += kLanes<A>) {
                const int64_t width = filters - j;
                A* to = scratch + (at + i) * kWidth + j;
                const T* source = from + i * grad.x_stride + j;
                store(to, width >= kLanes<A> ? load(source) : width > 0 ? load(source, width) : Vec<A>{});
              }
            }
          });
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

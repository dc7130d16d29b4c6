// Where the pixels of a channels_last image find their patches.
//
//   table[run][pixel] -> the run's first element in the image
//
//                pixel 0   1   2   3   4   5
//     run (0,0)    o   o   >   >   >   >         a run is one tap's channels; where those are few, a row of taps
//     run (0,1)    o   >   >   >   >   >         (neighbours in memory). o: outside of the image, a run of zeros
//     run (1,0)    o   o   >   >   >   >
//
// Padding, stride, dilation and the ends of images are in the table and nowhere else. Rows of taps that lie partly
// outside are copied, with zeros.
#pragma once
#include "cpu/kernels/conv2d_pack.h"

namespace tilewright {
namespace {

// How patches are cut into runs.
struct RowRuns {
  bool joined;  // a run is a row of taps
  int64_t count, length;
  int64_t zeros;  // that stand for a position outside: a run's, or of all groups' channels
};
inline RowRuns row_runs(const ConvWindow& window, int64_t groups, int64_t channels, int64_t x_stride) {
  const bool joined = x_stride == channels && joins_taps(groups, channels, window.cols, window.step_x);
  const int64_t length = joined ? window.cols * channels : channels;
  return {joined, joined ? window.rows : window.rows * window.cols, length, larger(length, groups * channels)};
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

// Of a pointer, in accumulators.
template <typename A>
constexpr int64_t kPointerSize = int64_t{sizeof(A*)} / int64_t{sizeof(A)};

// Scratch: block of sums or of gradients, zeros, table, copied edges; in accumulators of 4 or 8 bytes.
template <typename A>
int64_t conv_rows_scratch(const ConvWindow& window, int64_t groups, int64_t channels, int64_t x_stride,
                          int64_t pixels) {
  const RowRuns runs = row_runs(window, groups, channels, x_stride);
  const int64_t edges = runs.joined ? pixels * runs.count * runs.length : 0;
  return to_line(pixels * kRowVectors * kLanes<A>) + to_line(runs.zeros) +
         to_line(pixels * runs.count * kPointerSize<A>) + edges + 16;
}

// The table of a block of pixels in scratch behind `behind` accumulators.
template <typename A>
RowTable<A> make_table(const ConvImages<const A>& in, const ConvWindow& window, const RowRuns& runs, int64_t pixel,
                       int64_t pixels, A* scratch, int64_t behind) {
  A* zeros = scratch + to_line(behind);
  const int64_t zero_count = to_line(runs.zeros);
  fill_zero(zeros, zero_count);
  A* at = zeros + zero_count;
  RowTable<A> table{reinterpret_cast<const A**>(at), pixels, zeros,
                    at + to_line(pixels * runs.count * kPointerSize<A>)};
  fill_table(in, window, runs, pixel, pixels, table);
  return table;
}

}  // namespace
}  // namespace tilewright

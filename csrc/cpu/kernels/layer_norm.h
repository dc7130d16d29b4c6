// Layer norm's forward over contiguous rows; layer_norm_backward.h has the backward.
//   y = (x - mean) * rstd * weight + bias,  rstd = 1 / sqrt(var + eps), var biased
//
// How many rows are worked on together, by their length:
//   cols <= 4 vectors   statistics of 8 rows (as many as a vector has lanes, if fewer) side by side, y row by row
//   cols <= kShortRow   the same of 4 rows, if they are not to be fetched from memory
//   cols <  kLongRow    one row after the other
//   else                statistics row by row, y of 4 rows column by column
#pragma once
#include "cpu/kernels/layer_norm_backward.h"
#include "cpu/kernels/layer_norm_statistics.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

// Rows of a block of tiny rows, which are mostly sums across lanes, square roots and divisions.
template <typename A>
constexpr int kTinyBlockRows = kLanes<A> < 8 ? kLanes<A> : 8;
constexpr int64_t kTinyRowVectors = 4;

// Weight or bias from column c on, or what stands for an absent one.
template <typename A>
inline TILEWRIGHT_INLINE Vec<A> load_or(const A* parameter, int64_t c, int64_t n, A absent) {
  return parameter != nullptr ? load(parameter + c, n) : broadcast<A>(absent);
}
template <typename A>
constexpr A kNoWeight = 1;
template <typename A>
constexpr A kNoBias = A(-0.0);  // keeps the sign of a 0

// Everything is loaded before: the branches of a tail's load between a product and its sum would keep the compiler from
// contracting them, and a row would get other bits in one loop than in another.
template <typename A>
inline TILEWRIGHT_INLINE Vec<A> normalised(Vec<A> x, Vec<A> mean, Vec<A> rstd, Vec<A> rest, Vec<A> weight,
                                           Vec<A> bias) {
  return fma((x - mean) * rstd - rest, weight, bias);
}

template <int kRows, bool kStream, typename T>
inline TILEWRIGHT_INLINE void normalise_rows(const LayerNormForwardArgs<T>& args, int64_t first_row,
                                             const RowStatistics<Acc<T>>& block) {
  using A = Acc<T>;
  store(args.mean + first_row, block.mean, kRows);
  store(args.rstd + first_row, block.rstd, kRows);
  unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
    const Vec<A> mean = broadcast_lane<A>(block.mean, r), rstd = broadcast_lane<A>(block.rstd, r);
    const Vec<A> rest = broadcast_lane<A>(block.rest, r);
    const T* x = args.x + (first_row + r) * args.x_stride;
    T* y = args.y + (first_row + r) * args.cols;
    const A *weight = args.weight, *bias = args.bias;
    for_each_vector<A>(args.cols, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      const Vec<A> w = load_or(weight, c, n, kNoWeight<A>), b = load_or(bias, c, n, kNoBias<A>);
      store_or_stream<kStream>(y + c, normalised<A>(load(x + c, n), mean, rstd, rest, w, b), n);
    });
  });
}

// Blocks of kRows rows from `row` on while they last. In 16 bits the statistics of a block are found before the one in
// front of it is normalised: else the latency of their sums, square root and division is waited for, which at 768
// columns is a fifteenth of the time. In 32 bits, where more bytes are on their way, that costs up to 1.4x (256
// columns, beyond the cache).
template <int kRows, bool kShort, bool kStream, typename T>
int64_t layer_norm_forward_blocks(const LayerNormForwardArgs<T>& args, int64_t row, int64_t row_end) {
  if (row + kRows > row_end) return row;
  const auto statistics = [&](int64_t first) TILEWRIGHT_INLINE {
    return row_statistics<T, kRows, kShort>(args.x + first * args.x_stride, args.x_stride, args.cols, args.eps);
  };
  auto block = statistics(row);
  for (; row + 2 * kRows <= row_end; row += kRows) {
    if constexpr (sizeof(T) == 2) {
      const auto next = statistics(row + kRows);
      normalise_rows<kRows, kStream>(args, row, block);
      block = next;
    } else {
      normalise_rows<kRows, kStream>(args, row, block);
      block = statistics(row + kRows);
    }
  }
  normalise_rows<kRows, kStream>(args, row, block);
  return row + kRows;
}

// Four long rows at once, column by column: weight and bias, which leave the cache between one row and the next, are
// read once for all.
template <bool kStream, typename T>
int64_t layer_norm_forward_long_rows(const LayerNormForwardArgs<T>& args, int64_t row, int64_t row_end) {
  using A = Acc<T>;
  constexpr int kRows = 4;
  const A *weight = args.weight, *bias = args.bias;
  const int64_t cols = args.cols, stride = args.x_stride;
  for (; row + kRows <= row_end; row += kRows) {
    const T* x = args.x + row * stride;
    T* y = args.y + row * cols;
    Vec<A> mean[kRows], rstd[kRows], rest[kRows];
    unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
      const auto found = row_statistics<T, 1, false>(x + r * stride, stride, cols, args.eps);
      args.mean[row + r] = found.mean[0];
      args.rstd[row + r] = found.rstd[0];
      mean[r] = broadcast_lane<A>(found.mean, 0);
      rstd[r] = broadcast_lane<A>(found.rstd, 0);
      rest[r] = broadcast_lane<A>(found.rest, 0);
    });
    for_each_vector<A>(cols, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      const Vec<A> w = load_or(weight, c, n, kNoWeight<A>), b = load_or(bias, c, n, kNoBias<A>);
      unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
        const Vec<A> v = load(x + r * stride + c, n);
        store_or_stream<kStream>(y + r * cols + c, normalised<A>(v, mean[r], rstd[r], rest[r], w, b), n);
      });
    });
  }
  return row;
}

template <bool kStream, typename T>
void layer_norm_forward_range(const LayerNormForwardArgs<T>& args, int64_t row, int64_t row_end) {
  using A = Acc<T>;
  if (args.cols <= kTinyRowVectors * kLanes<A>) {
    row = layer_norm_forward_blocks<kTinyBlockRows<A>, true, kStream>(args, row, row_end);
  }
  if (args.cols <= kShortRow) {
    // From memory, rows of more than 256 columns are better read one after the other: 0.65x the time at 512 columns,
    // the same at 256, 1.25x at 128.
    constexpr int64_t kTogetherFromMemory = 256;
    if (!args.streams || args.cols <= kTogetherFromMemory) {
      row = layer_norm_forward_blocks<kBlockRows<A>, true, kStream>(args, row, row_end);
    }
    layer_norm_forward_blocks<1, true, kStream>(args, row, row_end);
    return;
  }
  if (args.cols >= kLongRow) row = layer_norm_forward_long_rows<kStream>(args, row, row_end);
  layer_norm_forward_blocks<1, false, kStream>(args, row, row_end);
}

template <typename T>
void layer_norm_forward_rows(const LayerNormForwardArgs<T>& args, int64_t row_begin, int64_t row_end) {
  const bool streams = args.streams && can_stream(args.y, args.cols);
  choose(streams, [&](auto stream) { layer_norm_forward_range<stream.value>(args, row_begin, row_end); });
  if (streams) finish_streams();
}

template <typename T>
void fill_layer_norm(TypedKernels<T>& table) {
  table.layer_norm = {layer_norm_forward_rows<T>, layer_norm_backward_rows<T>, layer_norm_row_means<T>,
                      layer_norm_column_gradients<T>};
}

}  // namespace
}  // namespace tilewright

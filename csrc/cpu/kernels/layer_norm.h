// Layer norm's forward over contiguous rows; layer_norm_backward.h has the backward.
//   y = (x - mean) * rstd * weight + bias,  rstd = 1 / sqrt(var + eps), var biased
//
// Statistics take one pass over a row, around an estimate of its mean from its first values: with d = x - estimate,
//   mean = estimate + sum(d) / n,  var = sum(d^2) / n - (sum(d) / n)^2,
// and where that estimate was poor another around the better one, from cache. So at most two bits of the variance are
// given away, for any data, and a constant row has no d at all: its y is the bias. Sums are in Acc.
//
//             cols ->                   a block of kRows rows:  statistics   row by row (short rows: side by side)
//   row  r    x x x x x x x x x x                               the numbers  of all rows at once
//   row  r+1  x x x x x x x x x x                               y            column by column, for all rows, which so
//   ...                                                                      share the loads of weight and bias
#pragma once
#include "cpu/kernels/layer_norm_backward.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

// Rows of at most so many columns are summed side by side: one chain of sums each, of which several hide the latency
// that one would wait for. Longer rows have four chains of their own and are read one after the other: as many streams
// as rows at once cost the prefetcher 1.6x at 768 columns.
constexpr int64_t kShortRow = 512;

// From here on weight, bias, x and y of one row fill more than L1; four rows at once then take 0.7 to 0.8x the time of
// one after the other (no less at 2048 columns).
constexpr int64_t kLongRow = 4096;

// Rows of a block of tiny rows, which are mostly sums across lanes, square roots and divisions.
template <typename A>
constexpr int kTinyBlockRows = kLanes<A> < 8 ? kLanes<A> : 8;
constexpr int64_t kTinyRowVectors = 4;

// Lane r of each: of row r of a block. y = ((x - mean) * rstd - rest) * weight + bias
template <typename A>
struct RowStatistics {
  Vec<A> mean, rstd;
  Vec<A> rest;       // the digits of the mean that A has no room for, times rstd, where they count
  Vec<A> lost_bits;  // positive: the estimate was poor, its distance from the mean is lost digits of the variance
};

template <typename A, int kRows>
inline TILEWRIGHT_INLINE RowStatistics<A> finish_statistics(const Vec<A> (&d)[kRows], const Vec<A> (&dd)[kRows],
                                                            Vec<A> estimate, int64_t cols, A eps) {
  const A scale = A(1) / static_cast<A>(cols);
  const Vec<A> distance = reduce_add_each<A, kRows>(d) * scale, square = reduce_add_each<A, kRows>(dd) * scale;
  const Vec<A> lost = distance * distance, variance = max(Vec<A>{}, square - lost);  // NaN passes
  const Vec<A> mean = estimate + distance, rstd = A(1) / sqrt(variance + eps);
  const Vec<A> rest = (distance - (mean - estimate)) * rstd;
  constexpr A kNegligible = sizeof(A) == 4 ? A(0x1p-24) : A(0x1p-53);
  return {mean, rstd, max(rest, -rest) > kNegligible ? rest : Vec<A>{}, lost - A(0.75) * square};
}

// An estimate must be finite, or it would hide where Inf and NaN lie.
template <typename A>
inline TILEWRIGHT_INLINE Vec<A> finite_or_zero(Vec<A> v) {
  return v - v == Vec<A>{} ? v : Vec<A>{};
}

// The means of the first values of each row, as many as a power of two: so equal values give themselves.
template <typename T, int kRows>
inline TILEWRIGHT_INLINE Vec<Acc<T>> first_estimate(const T* x, int64_t cols) {
  using A = Acc<T>;
  int64_t count = kLanes<A>;
  while (count > cols) count /= 2;
  Vec<A> first[kRows];
  unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE { first[r] = load(x + r * cols, count); });
  const A scale = A(1) / static_cast<A>(count);
  return finite_or_zero<A>(reduce_add_each<A, kRows>(first) * scale);
}

template <typename T, int kRows, bool kShort>
inline TILEWRIGHT_INLINE RowStatistics<Acc<T>> statistics_around(const T* x, int64_t cols, Vec<Acc<T>> estimate,
                                                                 Acc<T> eps) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  // Short rows have one chain of sums, others four: whichever rows are with it in a block, a row's sums are the same.
  static_assert(kShort || kRows == 1);
  constexpr int kChains = kShort ? 1 : 4;
  Vec<A> d[kRows * kChains] = {}, dd[kRows * kChains] = {}, centre[kRows];
  unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE { centre[r] = broadcast_lane<A>(estimate, r); });
  const auto add = [&](auto sum, Vec<A> distance) TILEWRIGHT_INLINE {
    d[sum] += distance;
    dd[sum] = fma(distance, distance, dd[sum]);
  };
  int64_t c = 0;
  for (; kChains > 1 && c + kChains * kStep <= cols; c += kChains * kStep) {
    unrolled<kChains>([&](auto i) TILEWRIGHT_INLINE { add(i, load(x + c + i * kStep) - centre[0]); });
  }
  for (; c + kStep <= cols; c += kStep) {
    unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE { add(r, load(x + r * cols + c) - centre[r]); });
  }
  if (c < cols) {
    unrolled<kRows>(
        [&](auto r) TILEWRIGHT_INLINE { add(r, keep_first(load(x + r * cols + c, cols - c) - centre[r], cols - c)); });
  }
  if constexpr (kShort) return finish_statistics<A, kRows>(d, dd, estimate, cols, eps);
  const Vec<A> d_sum[1] = {(d[0] + d[1]) + (d[2] + d[3])}, dd_sum[1] = {(dd[0] + dd[1]) + (dd[2] + dd[3])};
  return finish_statistics<A, 1>(d_sum, dd_sum, estimate, cols, eps);
}

template <typename T, int kRows, bool kShort>
inline TILEWRIGHT_INLINE RowStatistics<Acc<T>> row_statistics(const T* x, int64_t cols, Acc<T> eps) {
  using A = Acc<T>;
  auto found = statistics_around<T, kRows, kShort>(x, cols, first_estimate<T, kRows>(x, cols), eps);
  if (__builtin_expect(reduce_max<A>(found.lost_bits) > A(0), 0)) {
    // Of the rows concerned alone: another's result must not depend on who is with it in a block.
    const auto better = statistics_around<T, kRows, kShort>(x, cols, finite_or_zero<A>(found.mean), eps);
    const auto poor = found.lost_bits > A(0);
    found.mean = poor ? better.mean : found.mean;
    found.rstd = poor ? better.rstd : found.rstd;
    found.rest = poor ? better.rest : found.rest;
  }
  return found;
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
    const T* x = args.x + (first_row + r) * args.cols;
    T* y = args.y + (first_row + r) * args.cols;
    const A *weight = args.weight, *bias = args.bias;
    for_each_vector<A>(args.cols, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      Vec<A> v = (load(x + c, n) - mean) * rstd - rest;
      if (weight != nullptr) v *= load(weight + c, n);
      if (bias != nullptr) v += load(bias + c, n);
      store_or_stream<kStream>(y + c, v, n);
    });
  });
}

// Blocks of kRows rows from `row` on while they last. The statistics of a block are found before the one in front of it
// is normalised: their sums across lanes, square root and division take as long as a short row's arithmetic, and would
// else be waited for.
template <int kRows, bool kShort, bool kStream, typename T>
int64_t layer_norm_forward_blocks(const LayerNormForwardArgs<T>& args, int64_t row, int64_t row_end) {
  if (row + kRows > row_end) return row;
  const auto statistics = [&](int64_t first) TILEWRIGHT_INLINE {
    return row_statistics<T, kRows, kShort>(args.x + first * args.cols, args.cols, args.eps);
  };
  constexpr bool kAhead = kRows > 1 || sizeof(T) == 2;
  if constexpr (!kAhead) {
    for (; row + kRows <= row_end; row += kRows) normalise_rows<kRows, kStream>(args, row, statistics(row));
    return row;
  }
  auto block = statistics(row);
  for (; row + 2 * kRows <= row_end; row += kRows) {
    const auto next = statistics(row + kRows);
    normalise_rows<kRows, kStream>(args, row, block);
    block = next;
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
  const int64_t cols = args.cols;
  for (; row + kRows <= row_end; row += kRows) {
    const T* x = args.x + row * cols;
    T* y = args.y + row * cols;
    Vec<A> mean[kRows], rstd[kRows], rest[kRows];
    unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
      const auto found = row_statistics<T, 1, false>(x + r * cols, cols, args.eps);
      args.mean[row + r] = found.mean[0];
      args.rstd[row + r] = found.rstd[0];
      mean[r] = broadcast_lane<A>(found.mean, 0);
      rstd[r] = broadcast_lane<A>(found.rstd, 0);
      rest[r] = broadcast_lane<A>(found.rest, 0);
    });
    for_each_vector<A>(cols, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      const Vec<A> w = weight != nullptr ? load(weight + c, n) : broadcast<A>(1);
      const Vec<A> b = bias != nullptr ? load(bias + c, n) : broadcast<A>(A(-0.0));  // keeps the sign of a 0
      unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
        const Vec<A> xhat = (load(x + r * cols + c, n) - mean[r]) * rstd[r] - rest[r];
        store_or_stream<kStream>(y + r * cols + c, xhat * w + b, n);
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
    row = layer_norm_forward_blocks<kBlockRows<A>, true, kStream>(args, row, row_end);
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

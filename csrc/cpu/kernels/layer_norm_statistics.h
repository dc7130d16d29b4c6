// Mean and rstd of rows, in one pass around an estimate of the mean from the row's first values (estimate.h), and where
// that was poor in another from cache. A row of equal values has no distance from its estimate: its y is the bias.
#pragma once
#include "cpu/kernels/estimate.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

// Rows of at most so many columns are summed side by side: one chain of sums each, of which several hide the latency
// that one would wait for. Longer rows have four chains of their own and are read one after the other: as many streams
// as rows at once cost the prefetcher 1.6x at 768 columns.
constexpr int64_t kShortRow = 512;

// Lane r of each: of row r of a block. y = ((x - mean) * rstd - rest) * weight + bias
template <typename A>
struct RowStatistics {
  Vec<A> mean, rstd;
  Vec<A> rest;       // the digits of the mean that A has no room for, times rstd, where they count
  Vec<A> lost_bits;  // positive: the estimate was poor, its distance from the mean is lost digits of the variance
};

// Of the means of d and of d^2.
template <typename A>
inline TILEWRIGHT_INLINE RowStatistics<A> finish_statistics(Vec<A> distance, Vec<A> square, Vec<A> estimate, A eps) {
  const Vec<A> lost = distance * distance, variance = max(Vec<A>{}, square - lost);  // NaN passes
  const Vec<A> mean = estimate + distance, rstd = A(1) / sqrt(variance + eps);
  const Vec<A> rest = (distance - (mean - estimate)) * rstd;
  constexpr A kNegligible = sizeof(A) == 4 ? A(0x1p-24) : A(0x1p-53);
  return {mean, rstd, max(rest, -rest) > kNegligible ? rest : Vec<A>{}, lost - A(kPoorShare) * square};
}

// The means of the first values of each row, as many as a power of two: so equal values give themselves.
template <typename T, int kRows>
inline TILEWRIGHT_INLINE Vec<Acc<T>> first_estimate(const T* x, int64_t stride, int64_t cols) {
  using A = Acc<T>;
  int64_t count = kLanes<A>;
  while (count > cols) count /= 2;
  const A scale = A(1) / static_cast<A>(count);
  Vec<A> first[kRows];
  unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE { first[r] = load(x + r * stride, count); });
  return finite_or_zero(reduce_add_each<A, kRows>(first) * scale);
}

// Short rows: one chain of sums each, whichever rows are with it in a block.
template <typename T, int kRows>
inline TILEWRIGHT_INLINE RowStatistics<Acc<T>> short_rows_around(const T* x, int64_t stride, int64_t cols,
                                                                 Vec<Acc<T>> estimate, Acc<T> eps) {
  using A = Acc<T>;
  Vec<A> d[kRows] = {}, dd[kRows] = {}, centre[kRows];
  unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE { centre[r] = broadcast_lane<A>(estimate, r); });
  for_each_vector<A>(cols, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
      const Vec<A> distance = keep_first(load(x + r * stride + c, n) - centre[r], n);
      d[r] += distance;
      dd[r] = fma(distance, distance, dd[r]);
    });
  });
  const A scale = A(1) / static_cast<A>(cols);
  return finish_statistics<A>(reduce_add_each<A, kRows>(d) * scale, reduce_add_each<A, kRows>(dd) * scale, estimate,
                              eps);
}

// A long row: four chains of sums, which are added up in float64 every kSumBlock columns, so that one value, however
// large, hides the digits of its block's others alone.
template <typename T>
inline RowStatistics<Acc<T>> long_row_around(const T* x, int64_t cols, Vec<Acc<T>> estimate, Acc<T> eps) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>, kSumBlock = 4096;
  const Vec<A> centre = broadcast_lane<A>(estimate, 0);
  double d_sum = 0.0, dd_sum = 0.0;
  for (int64_t c = 0; c < cols;) {
    const int64_t end = cols - c < kSumBlock ? cols : c + kSumBlock;
    Vec<A> d[4] = {}, dd[4] = {};
    const auto add = [&](auto chain, Vec<A> distance) TILEWRIGHT_INLINE {
      d[chain] += distance;
      dd[chain] = fma(distance, distance, dd[chain]);
    };
    for (; c + 4 * kStep <= end; c += 4 * kStep) {
      unrolled<4>([&](auto i) TILEWRIGHT_INLINE { add(i, load(x + c + i * kStep) - centre); });
    }
    for (; c + kStep <= end; c += kStep) add(Index<0>{}, load(x + c) - centre);
    if (c < end) add(Index<1>{}, keep_first(load(x + c, end - c) - centre, end - c));
    c = end;
    d_sum += static_cast<double>(reduce_add<A>((d[0] + d[1]) + (d[2] + d[3])));
    dd_sum += static_cast<double>(reduce_add<A>((dd[0] + dd[1]) + (dd[2] + dd[3])));
  }
  const double scale = 1.0 / static_cast<double>(cols);
  return finish_statistics<A>(broadcast<A>(static_cast<A>(d_sum * scale)), broadcast<A>(static_cast<A>(dd_sum * scale)),
                              estimate, eps);
}

template <typename T, int kRows, bool kShort>
inline TILEWRIGHT_INLINE RowStatistics<Acc<T>> row_statistics(const T* x, int64_t stride, int64_t cols, Acc<T> eps) {
  using A = Acc<T>;
  static_assert(kShort || kRows == 1);
  const auto around = [=](Vec<A> estimate) TILEWRIGHT_INLINE {
    if constexpr (kShort) return short_rows_around<T, kRows>(x, stride, cols, estimate, eps);
    return long_row_around<T>(x, cols, estimate, eps);
  };
  auto found = around(first_estimate<T, kRows>(x, stride, cols));
  // Of the rows concerned alone: a result must not depend on who is with it in a block, nor on a NaN among them, which
  // reduce_max of lost_bits themselves would pass on or not by its place.
  const auto poor = found.lost_bits > A(0);
  if (__builtin_expect(reduce_max<A>(poor ? found.lost_bits : Vec<A>{}) > A(0), 0)) {
    const auto better = around(finite_or_zero(found.mean));
    found.mean = poor ? better.mean : found.mean;
    found.rstd = poor ? better.rstd : found.rstd;
    found.rest = poor ? better.rest : found.rest;
  }
  return found;
}

}  // namespace
}  // namespace tilewright

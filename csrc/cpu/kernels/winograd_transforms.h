// Convolutions of stride 1 by Winograd's minimal filtering in both directions, F(m x m, r x r): (m+r-1)^2 products for
// m x m pixels, where the plain sum has r^2 for one. For 3x3 that is 4 (m = 2) or 2.25 (m = 4) a pixel instead of 9,
// for 5x5 9 (m = 2) instead of 25.
//
//   y = A^T [ (G g G^T) * (B^T d B) ] A        d (m+r-1)^2 positions, g r x r weights, y m x m pixels; * point by point
//   dg = G^T [ (B^T d B) * (A dy A^T) ] G      the weights' gradient, the same identity read backwards
//
// Summed over channels (or tiles) the products are (m+r-1)^2 matrix products. Errors are relative to the largest weight
// and value of a tile: a small one beside a large one is rounded as the large. A pixel's value depends on what lies in
// its tile but not in its window only by rounding, unless it is Inf or NaN: the functions that finish a result report
// values that are not finite, and the caller computes the plain sum.
#pragma once
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/winograd_filtering.h"

namespace tilewright {
namespace {

// Of one panel: packed [tap][channel][kTileCols] to transformed [point][channel][kTileCols].
template <typename A, int kPixels, int kTaps>
void winograd_transform_weights(const A* packed, int64_t channels, A* transformed, int64_t point_stride) {
  using F = Filtering<kPixels, kTaps>;
  const int64_t tap_stride = channels * kTileCols<A>;
  for_each_vector<A>(tap_stride, [&](int64_t e, int64_t n) TILEWRIGHT_INLINE {
    transform_both_ways<A, kTaps, F::kPoints>(
        [](const Vec<A>(&g)[kTaps], Vec<A>(&u)[F::kPoints]) TILEWRIGHT_INLINE { F::template weights<A>(g, u); },
        [&](int i, int j) TILEWRIGHT_INLINE { return load(packed + (i * kTaps + j) * tap_stride + e, n); },
        [&](int i, int j, Vec<A> v)
            TILEWRIGHT_INLINE { store(transformed + (i * F::kPoints + j) * point_stride + e, v, n); });
  });
}

template <typename A>
inline bool all_finite(Vec<A> zero_or_nan) {
  return reduce_add<A>(zero_or_nan) == A(0);
}

template <typename A, int kPixels, int kTaps>
bool winograd_reduce_weights(const A* sums, int64_t chunks, int64_t channels, int64_t stride, int64_t channel_begin,
                             int64_t channel_end, A* reduced) {
  using F = Filtering<kPixels, kTaps>;
  constexpr int64_t kPoints = F::kPoints * F::kPoints;
  const int64_t matrix = channels * stride, begin = channel_begin * stride;
  Vec<A> check{};
  for_each_vector<A>((channel_end - channel_begin) * stride, [&](int64_t e, int64_t n) TILEWRIGHT_INLINE {
    transform_both_ways<A, F::kPoints, kTaps>([](const Vec<A>(&s)[F::kPoints], Vec<A>(&dg)[kTaps])
                                                  TILEWRIGHT_INLINE { F::template weights_gradient<A>(s, dg); },
                                              [&](int i, int j) TILEWRIGHT_INLINE {
                                                const A* from = sums + (i * F::kPoints + j) * matrix + begin + e;
                                                Vec<A> sum = load(from, n);
                                                for (int64_t chunk = 1; chunk < chunks; ++chunk)
                                                  sum += load(from + chunk * kPoints * matrix, n);
                                                return sum;
                                              },
                                              [&](int i, int j, Vec<A> v) TILEWRIGHT_INLINE {
                                                check = fma(v, Vec<A>{}, check);
                                                store(reduced + (i * kTaps + j) * matrix + begin + e, v, n);
                                              });
  });
  return all_finite<A>(check);
}

}  // namespace
}  // namespace tilewright

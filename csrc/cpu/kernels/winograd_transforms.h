// 3x3 convolutions of stride 1 by Winograd's minimal filtering F(2x2, 3x3): 16 products where the plain sum has 36.
//
//   y = A^T [ (G g G^T) * (B^T d B) ] A        d 4x4 positions, g 3x3 weights, y 2x2 pixels; * point by point
//   dg = G^T [ (B^T d B) * (A dy A^T) ] G      the weights' gradient, the same identity read backwards
//
//        1  0 -1  0            1   0   0
//  B^T = 0  1  1  0      G =  .5  .5  .5      A^T = 1  1  1  0
//        0 -1  1  0           .5 -.5  .5            0  1 -1 -1
//        0  1  0 -1            0   0   1
//
// Summed over channels (or tiles) the products are 16 matrix products. The transforms are sums and halvings: on
// data of even scale errors stay at those of the plain sum (F(4x4, 3x3) would multiply them by ten and more). They are
// relative to the largest weight and value of a tile, though: a small one beside a large one is rounded as the large.
// Points a pixel does not depend on have a zero in A^T or B^T, so an Inf or a NaN reaches the pixels it reaches in the
// plain sum, but Inf may become NaN there: the functions that finish a result report values that are not finite, and
// the caller computes the plain sum.
#pragma once
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

template <typename A>
inline TILEWRIGHT_INLINE void input_points(const Vec<A>& d0, const Vec<A>& d1, const Vec<A>& d2, const Vec<A>& d3,
                                           Vec<A> (&out)[4]) {
  out[0] = d0 - d2;
  out[1] = d1 + d2;
  out[2] = d2 - d1;
  out[3] = d1 - d3;
}

// B^T d B of one vector of channels: load_at(i, j) gives position (i, j), keep(point, v) takes the result.
template <typename A, typename LoadAt, typename Keep>
inline TILEWRIGHT_INLINE void transform_input(const LoadAt& load_at, const Keep& keep) {
  Vec<A> half[4][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    Vec<A> column[4];
    input_points<A>(load_at(0, j), load_at(1, j), load_at(2, j), load_at(3, j), column);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) half[i][j] = column[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    Vec<A> row[4];
    input_points<A>(half[i][0], half[i][1], half[i][2], half[i][3], row);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) keep(i * 4 + j, row[j]);
  }
}

// A^T m A: load_at(point) gives the sums, y the 2 x 2 pixels.
template <typename A, typename LoadAt>
inline TILEWRIGHT_INLINE void transform_output(const LoadAt& load_at, Vec<A> (&y)[2][2]) {
  Vec<A> half[2][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vec<A> m0 = load_at(j), m1 = load_at(4 + j), m2 = load_at(8 + j), m3 = load_at(12 + j);
    half[0][j] = m0 + m1 + m2;
    half[1][j] = m1 - m2 - m3;
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    y[i][0] = half[i][0] + half[i][1] + half[i][2];
    y[i][1] = half[i][1] - half[i][2] - half[i][3];
  }
}

// A dy A^T: load_at(i, j) gives pixel (i, j).
template <typename A, typename LoadAt, typename Keep>
inline TILEWRIGHT_INLINE void transform_gradient(const LoadAt& load_at, const Keep& keep) {
  Vec<A> half[4][2];
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const Vec<A> d0 = load_at(0, j), d1 = load_at(1, j);
    half[0][j] = d0;
    half[1][j] = d0 + d1;
    half[2][j] = d0 - d1;
    half[3][j] = -d1;
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    keep(i * 4, half[i][0]);
    keep(i * 4 + 1, half[i][0] + half[i][1]);
    keep(i * 4 + 2, half[i][0] - half[i][1]);
    keep(i * 4 + 3, -half[i][1]);
  }
}

// --- weights ---------------------------------------------------------------------------------------------------------

template <typename A>
void winograd_transform_weights(const A* packed, int64_t channels, A* transformed, int64_t point_stride) {
  const int64_t tap_stride = channels * kTileCols<A>;
  for_each_vector<A>(tap_stride, [&](int64_t e, int64_t n) TILEWRIGHT_INLINE {
    Vec<A> half[4][3];
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      const A* tap = packed + j * tap_stride + e;
      const Vec<A> g0 = load(tap, n), g1 = load(tap + 3 * tap_stride, n), g2 = load(tap + 6 * tap_stride, n);
      const Vec<A> even = (g0 + g2) * A(0.5), odd = g1 * A(0.5);
      half[0][j] = g0;
      half[1][j] = even + odd;
      half[2][j] = even - odd;
      half[3][j] = g2;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vec<A> even = (half[i][0] + half[i][2]) * A(0.5), odd = half[i][1] * A(0.5);
      A* out = transformed + i * 4 * point_stride + e;
      store(out, half[i][0], n);
      store(out + point_stride, even + odd, n);
      store(out + 2 * point_stride, even - odd, n);
      store(out + 3 * point_stride, half[i][2], n);
    }
  });
}

template <typename A>
inline bool all_finite(Vec<A> zero_or_nan) {
  return reduce_add<A>(zero_or_nan) == A(0);
}

template <typename A>
bool winograd_reduce_weights(const A* sums, int64_t chunks, int64_t channels, int64_t stride, int64_t channel_begin,
                             int64_t channel_end, A* reduced) {
  const int64_t matrix = channels * stride, begin = channel_begin * stride;
  Vec<A> check{};
  for_each_vector<A>((channel_end - channel_begin) * stride, [&](int64_t e, int64_t n) TILEWRIGHT_INLINE {
    const auto sum_of = [&](int64_t point) TILEWRIGHT_INLINE {
      const A* from = sums + point * matrix + begin + e;
      Vec<A> sum = load(from, n);
      for (int64_t chunk = 1; chunk < chunks; ++chunk) sum += load(from + chunk * kWinogradPoints * matrix, n);
      return sum;
    };
    Vec<A> half[3][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec<A> s1 = sum_of(4 + j), s2 = sum_of(8 + j), even = (s1 + s2) * A(0.5);
      half[0][j] = sum_of(j) + even;
      half[1][j] = (s1 - s2) * A(0.5);
      half[2][j] = even + sum_of(12 + j);
    }
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      const Vec<A> even = (half[i][1] + half[i][2]) * A(0.5);
      const Vec<A> out[3] = {half[i][0] + even, (half[i][1] - half[i][2]) * A(0.5), even + half[i][3]};
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        check = fma(out[j], Vec<A>{}, check);
        store(reduced + (i * 3 + j) * matrix + begin + e, out[j], n);
      }
    }
  });
  return all_finite<A>(check);
}

}  // namespace
}  // namespace tilewright

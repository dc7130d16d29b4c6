// Winograd's minimal filtering of one dimension, F(m, r): m pixels of a convolution with r weights from m + r - 1
// products.
//
//   y = A^T [ (G g) * (B^T d) ]        d m + r - 1 positions, g r weights, y m pixels; * point by point
//
// The points are those at which polynomials are evaluated: 0, the given ones and infinity.
//
// F(2, 3), points +-1:   1  0 -1  0            1   0   0
//                  B^T = 0  1  1  0      G =  .5  .5  .5      A^T = 1  1  1  0
//                        0 -1  1  0           .5 -.5  .5            0  1 -1 -1
//                        0  1  0 -1            0   0   1
//
// F(4, 3) and F(2, 5), points +-a, +-b with a = 21/32, b = 3/2; pq is a product, S = a2 + b2:
//        a2b2   0   -S    0   1   0          1/a2b2 *  1   0   0  ...
//          0  -ab2 -b2    a   1   0           1/n   *  1   a   a2 ...           1  1  1  1  1  0
//  B^T =   0   ab2 -b2   -a   1   0      G =  1/n   *  1  -a   a2 ...    A^T =  0  a -a  b -b  0
//          0  -a2b -a2    b   1   0           1/k   *  1   b   b2 ...           0  a2 a2 b2 b2 0
//          0   a2b -a2   -b   1   0           1/k   *  1  -b   b2 ...           ...            1
//          0  a2b2   0   -S   0   1                    0   0   .. 1
//
//  a2 = a * a and so on, n = 2 a2 (a2 - b2), k = 2 b2 (b2 - a2); the 1 in the corner is in the last row.
//
// The usual points, +-1 and +-2, make intermediates of up to eight times the sums: three times the rounding errors of
// these (docs/conv2d.md), whose powers in B^T and A^T are exact in float32.
#pragma once
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

// a, b and the transforms that do not depend on how the six points are shared between pixels and weights.
template <int kPixels, int kTaps>
struct Filtering {
  static_assert(kPixels + kTaps == 7);
  static constexpr int kPoints = 6;
  static constexpr double a = 21.0 / 32, b = 1.5, a2 = a * a, b2 = b * b;
  static constexpr double n = 2 * a2 * (a2 - b2), k = 2 * b2 * (b2 - a2);
  static constexpr double powers_a[] = {1, a, a2, a2 * a, a2 * a2}, powers_b[] = {1, b, b2, b2 * b, b2 * b2};

  // B^T d
  template <typename A>
  static TILEWRIGHT_INLINE void input(const Vec<A> (&d)[6], Vec<A> (&v)[6]) {
    const Vec<A> of_a_even = d[4] - d[2] * A(b2), of_a_odd = d[3] - d[1] * A(b2);
    const Vec<A> of_b_even = d[4] - d[2] * A(a2), of_b_odd = d[3] - d[1] * A(a2);
    v[0] = d[4] - d[2] * A(a2 + b2) + d[0] * A(a2 * b2);
    v[1] = of_a_even + of_a_odd * A(a);
    v[2] = of_a_even - of_a_odd * A(a);
    v[3] = of_b_even + of_b_odd * A(b);
    v[4] = of_b_even - of_b_odd * A(b);
    v[5] = d[5] - d[3] * A(a2 + b2) + d[1] * A(a2 * b2);
  }

  // Values at the points of the polynomial with coefficients x.
  template <typename A, int kCount>
  static TILEWRIGHT_INLINE void evaluate(const Vec<A> (&x)[kCount], Vec<A> (&v)[6]) {
    Vec<A> even_a = x[0], even_b = x[0], odd_a = x[1] * A(a), odd_b = x[1] * A(b);
#pragma GCC unroll 3
    for (int i = 2; i < kCount; ++i) {
      Vec<A>&of_a = i % 2 == 0 ? even_a : odd_a, &of_b = i % 2 == 0 ? even_b : odd_b;
      of_a += x[i] * A(powers_a[i]);
      of_b += x[i] * A(powers_b[i]);
    }
    v[0] = x[0];
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = x[kCount - 1];
  }

  // The transposed map.
  template <typename A, int kCount>
  static TILEWRIGHT_INLINE void collect(const Vec<A> (&v)[6], Vec<A> (&x)[kCount]) {
    const Vec<A> even_a = v[1] + v[2], odd_a = v[1] - v[2], even_b = v[3] + v[4], odd_b = v[3] - v[4];
    x[0] = v[0] + even_a + even_b;
#pragma GCC unroll 4
    for (int i = 1; i < kCount; ++i) {
      x[i] = (i % 2 == 0 ? even_a : odd_a) * A(powers_a[i]) + (i % 2 == 0 ? even_b : odd_b) * A(powers_b[i]);
    }
    x[kCount - 1] += v[5];
  }

  template <typename A>
  static TILEWRIGHT_INLINE void scale(Vec<A> (&v)[6]) {
    v[0] *= A(1 / (a2 * b2));
    v[1] *= A(1 / n);
    v[2] *= A(1 / n);
    v[3] *= A(1 / k);
    v[4] *= A(1 / k);
  }

  // G g
  template <typename A>
  static TILEWRIGHT_INLINE void weights(const Vec<A> (&g)[kTaps], Vec<A> (&u)[6]) {
    evaluate<A, kTaps>(g, u);
    scale<A>(u);
  }

  // A^T m
  template <typename A>
  static TILEWRIGHT_INLINE void output(const Vec<A> (&m)[6], Vec<A> (&y)[kPixels]) {
    collect<A, kPixels>(m, y);
  }

  // A dy
  template <typename A>
  static TILEWRIGHT_INLINE void gradient(const Vec<A> (&dy)[kPixels], Vec<A> (&v)[6]) {
    evaluate<A, kPixels>(dy, v);
  }

  // G^T s
  template <typename A>
  static TILEWRIGHT_INLINE void weights_gradient(const Vec<A> (&s)[6], Vec<A> (&dg)[kTaps]) {
    Vec<A> scaled[6] = {s[0], s[1], s[2], s[3], s[4], s[5]};
    scale<A>(scaled);
    collect<A, kTaps>(scaled, dg);
  }
};

template <>
struct Filtering<2, 3> {
  static constexpr int kPoints = 4;

  template <typename A>
  static TILEWRIGHT_INLINE void input(const Vec<A> (&d)[4], Vec<A> (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }

  template <typename A>
  static TILEWRIGHT_INLINE void weights(const Vec<A> (&g)[3], Vec<A> (&u)[4]) {
    const Vec<A> even = (g[0] + g[2]) * A(0.5), odd = g[1] * A(0.5);
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  }

  template <typename A>
  static TILEWRIGHT_INLINE void output(const Vec<A> (&m)[4], Vec<A> (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }

  template <typename A>
  static TILEWRIGHT_INLINE void gradient(const Vec<A> (&dy)[2], Vec<A> (&v)[4]) {
    v[0] = dy[0];
    v[1] = dy[0] + dy[1];
    v[2] = dy[0] - dy[1];
    v[3] = -dy[1];
  }

  template <typename A>
  static TILEWRIGHT_INLINE void weights_gradient(const Vec<A> (&s)[4], Vec<A> (&dg)[3]) {
    const Vec<A> even = (s[1] + s[2]) * A(0.5);
    dg[0] = s[0] + even;
    dg[1] = (s[1] - s[2]) * A(0.5);
    dg[2] = even + s[3];
  }
};

// M x M^T: a map of one dimension applied to the columns of x, then to the rows of the result. load_at(i, j) gives x,
// keep(i, j, value) takes the result.
template <typename A, int kFrom, int kTo, typename Map, typename LoadAt, typename Keep>
inline TILEWRIGHT_INLINE void transform_both_ways(const Map& map, const LoadAt& load_at, const Keep& keep) {
  Vec<A> half[kTo][kFrom];
#pragma GCC unroll 6
  for (int j = 0; j < kFrom; ++j) {
    Vec<A> column[kFrom], mapped[kTo];
#pragma GCC unroll 6
    for (int i = 0; i < kFrom; ++i) column[i] = load_at(i, j);
    map(column, mapped);
#pragma GCC unroll 6
    for (int i = 0; i < kTo; ++i) half[i][j] = mapped[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kTo; ++i) {
    Vec<A> mapped[kTo];
    map(half[i], mapped);
#pragma GCC unroll 6
    for (int j = 0; j < kTo; ++j) keep(i, j, mapped[j]);
  }
}

}  // namespace
}  // namespace tilewright

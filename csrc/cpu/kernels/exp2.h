// 2^x for softmax: the fraction's power by a polynomial, minimax in relative error on [0, 1] and exact at 0 (fitted
// with mpmath by Remez' exchange), the rest exactly. Overflows to Inf, underflows through denormals to 0, NaN stays
// NaN.
#pragma once
#include "cpu/kernels/gemm.h"

namespace tilewright {
namespace {

// Error 2.0e-9 (float32, degree 6) and 4.3e-20 (float64, degree 12): rounding dominates.
template <typename A>
struct Exp2Terms {
  static constexpr float kTerms[] = {1.0f,
                                     0.69314704444336655545f,
                                     0.24022930555173854114f,
                                     0.055485280620182784799f,
                                     0.0096754515652170405198f,
                                     0.0012467846450773492551f,
                                     0.00021612914969557343788f};
};
template <>
struct Exp2Terms<double> {
  static constexpr double kTerms[] = {1.0,
                                      0.6931471805599452998,
                                      0.24022650695910139361,
                                      0.055504108664804846641,
                                      0.0096181291078335555476,
                                      0.0013333558131766026507,
                                      0.00015403531057985137206,
                                      1.5252713800679200654e-05,
                                      1.3215895714432522402e-06,
                                      1.0172390632591285977e-07,
                                      7.1079743552985473709e-09,
                                      4.1311292530724229165e-10,
                                      3.6192721321629077453e-11};
};
// For what is rounded to bfloat16, by up to 2e-3: degree 3, error 8.6e-5.
struct Exp2RoundedTerms {
  static constexpr float kTerms[] = {1.0f, 0.69511678644539568517f, 0.22764499113539549026f, 0.077067042072069855642f};
};

template <typename Terms, typename V>
inline TILEWRIGHT_INLINE V exp2_by(V x) {
  const PowerParts<V> parts = split_power(x);
  return scale_by_power_of_two(polynomial(parts.fraction, Terms::kTerms), parts.whole);
}

template <typename A>
inline TILEWRIGHT_INLINE Vec<A> exp2(Vec<A> x) {
  return exp2_by<Exp2Terms<A>>(x);
}

// As good as elements E of a product need it.
template <typename E>
inline TILEWRIGHT_INLINE Vec<SumOf<E>> exp2_for(Vec<SumOf<E>> x) {
  if constexpr (kDepthOf<E> > 1) {
    return exp2_by<Exp2RoundedTerms>(x);
  } else {
    return exp2<SumOf<E>>(x);
  }
}

}  // namespace
}  // namespace tilewright

// The arithmetic of batch norm that both layouts share: one element vector at a time, and how a block's sums become its
// statistics.
#pragma once
#include "common/macros.h"
#include "cpu/kernels/activation.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

// Is the estimate of a mean good enough for one pass? sums: of d = x - estimate and of d^2 over count values. The
// square of the distance between estimate and mean is lost digits in the variance: at most two bits are given away.
inline bool estimate_is_poor(double sum_d, double sum_dd, double count) {
  return sum_d * sum_d > 0.75 * sum_dd * count;
}

// An estimate must be finite, or it would hide where Inf and NaN lie.
template <typename A>
inline A finite_or_zero(A estimate) {
  return estimate - estimate == A(0) ? estimate : A(0);
}

// A block's mean and m2 from the same sums. The correction gives the mean more digits than Acc has, so x + 1e4 keeps
// its variance and a constant channel has none.
inline void store_block_stats(double estimate, double sum_d, double sum_dd, double count, double* mean, double* m2) {
  *mean = estimate + sum_d / count;
  const double value = sum_dd - sum_d * sum_d / count;
  *m2 = value < 0.0 ? 0.0 : value;
}

// NaN stays NaN.
template <typename V>
inline V relu(V v) {
  return v < V{} ? V{} : v;
}

// How a loop is compiled for the activation behind it: relu costs nothing, the others are worth a call and a test.
enum : int { kNoActivation, kReluActivation, kOtherActivation };

template <typename Body>
inline void choose_activation(Activation activation, const Body& body) {
  if (activation == Activation::kNone) return body(Index<kNoActivation>{});
  if (activation == Activation::kRelu) return body(Index<kReluActivation>{});
  body(Index<kOtherActivation>{});
}

// y = act(v), and v itself to pre where that is wanted.
template <int kActivation, bool kStream, typename T>
inline TILEWRIGHT_INLINE void store_activated(const BatchNormApplyArgs<T>& args, int64_t offset, Vec<Acc<T>> v,
                                              int64_t n) {
  if constexpr (kActivation == kReluActivation) v = relu(v);
  if constexpr (kActivation == kOtherActivation) {
    if (args.pre != nullptr) store_or_stream<kStream>(args.pre + offset, v, n);
    v = activate<Acc<T>>(args.activation, v);
  }
  store_or_stream<kStream>(args.y + offset, v, n);
}

// The gradient that passes an optional relu with output y: native's rule, which lets a NaN through.
template <typename T, bool kRelu>
inline TILEWRIGHT_INLINE Vec<Acc<T>> load_gradient(const T* dy, const T* y, int64_t offset, int64_t n) {
  const Vec<Acc<T>> d = load(dy + offset, n);
  if constexpr (kRelu) {
    const Vec<Acc<T>> out = load(y + offset, n);
    return out <= Vec<Acc<T>>{} ? Vec<Acc<T>>{} : d;
  }
  return d;
}

}  // namespace
}  // namespace tilewright

// The arithmetic of batch norm that both layouts share: one element vector at a time, and how a block's sums become its
// statistics.
#pragma once
#include "common/macros.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

// A block's mean and m2 from a first estimate of the mean and the sums of d = x - estimate and d^2: the correction
// takes back what the float32 sum behind the estimate had lost (x + 1e4 keeps its variance), and a constant channel
// gives 0.
inline void store_block_stats(double estimate, double sum_d, double sum_dd, double count, double* mean, double* m2) {
  const bool finite = sum_d - sum_d == 0.0;  // an infinite x has no usable distance, but a mean
  *mean = finite ? estimate + sum_d / count : estimate;
  const double value = sum_dd - sum_d * sum_d / count;
  *m2 = value < 0.0 ? 0.0 : value;
}

// NaN stays NaN.
template <typename V>
inline V relu(V v) {
  return v < V{} ? V{} : v;
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

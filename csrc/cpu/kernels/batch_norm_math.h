// The arithmetic of batch norm that both layouts share: one element vector at a time, and how a block's sums become its
// statistics.
#pragma once
#include "common/macros.h"
#include "cpu/kernels/activation.h"
#include "cpu/kernels/estimate.h"
#include "cpu/kernels/lane_bits.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

// From the sums of d = x - estimate and of d^2 over count values.
inline bool estimate_is_poor(double sum_d, double sum_dd, double count) {
  return sum_d * sum_d > kPoorShare * sum_dd * count;
}

// A block's mean and m2 from the same sums. The correction gives the mean more digits than Acc has, so x + 1e4 keeps
// its variance and a constant channel has none.
inline void store_block_stats(double estimate, double sum_d, double sum_dd, double count, double* mean, double* m2) {
  *mean = estimate + sum_d / count;
  const double value = sum_dd - sum_d * sum_d / count;
  *m2 = value < 0.0 ? 0.0 : value;
}

// How a loop is compiled for the activation behind it: relu and relu6 cost nothing, the others are worth a call and a
// test.
enum : int { kNoActivation, kReluActivation, kRelu6Activation, kOtherActivation };

template <typename Body>
inline void choose_loop_activation(Activation activation, const Body& body) {
  if (activation == Activation::kNone) return body(Index<kNoActivation>{});
  if (activation == Activation::kRelu) return body(Index<kReluActivation>{});
  if (activation == Activation::kRelu6) return body(Index<kRelu6Activation>{});
  body(Index<kOtherActivation>{});
}

// Up to here a value is 0 once it is rounded to T, as half its smallest number is; and native asks the rounded one
// whether a gradient passes.
template <typename T>
constexpr Acc<T> kRoundsToZero = 0;
template <>
constexpr float kRoundsToZero<BF16> = 0x1p-134f;
template <>
constexpr float kRoundsToZero<F16> = 0x1p-25f;
// And from here on it is 6 or more.
template <typename T>
constexpr Acc<T> kRoundsToSix = 6;
template <>
constexpr float kRoundsToSix<BF16> = 6 - 0x1p-6f;
template <>
constexpr float kRoundsToSix<F16> = 6 - 0x1p-9f;

// Bit i: the gradient of relu or relu6 passes lane i.
template <int kActivation, typename T>
inline TILEWRIGHT_INLINE uint32_t passing_bits(Vec<Acc<T>> v) {
  using A = Acc<T>;
  const uint32_t positive = bits_not_below(v, broadcast<A>(kRoundsToZero<T>));
  if constexpr (kActivation == kReluActivation) return positive;
  return positive & bits_not_below(-v, broadcast<A>(-kRoundsToSix<T>));
}

// y = act(v), and what the backward needs of v where that is wanted: `bit` is the element's number among the bits.
template <int kActivation, bool kStream, typename T>
inline TILEWRIGHT_INLINE void store_activated(const BatchNormApplyArgs<T>& args, int64_t offset, int64_t bit,
                                              Vec<Acc<T>> v, int64_t n) {
  using A = Acc<T>;
  if constexpr (kActivation == kReluActivation || kActivation == kRelu6Activation) {
    if (args.passes != nullptr) store_bits<kLanes<A>>(args.passes, bit, passing_bits<kActivation, T>(v), n);
    v = kActivation == kReluActivation ? relu(v) : relu6<A>(v);
  }
  if constexpr (kActivation == kOtherActivation) {
    if (args.pre != nullptr) store_or_stream<kStream>(args.pre + offset, v, n);
    v = activate<A>(args.activation, v);
  }
  store_or_stream<kStream>(args.y + offset, v, n);
}

// The gradient that passes an optional relu or relu6.
template <bool kMasked, typename T>
inline TILEWRIGHT_INLINE Vec<Acc<T>> load_gradient(const T* dy, const uint8_t* passes, int64_t offset, int64_t bit,
                                                   int64_t n) {
  const Vec<Acc<T>> d = load(dy + offset, n);
  if constexpr (kMasked) return lanes_where(load_bits(passes, bit), d);
  return d;
}

}  // namespace
}  // namespace tilewright

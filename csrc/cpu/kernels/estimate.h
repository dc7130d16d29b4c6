// Mean and variance in one pass, around an estimate of the mean: with d = x - estimate,
//   mean = estimate + mean(d),  var = mean(d^2) - mean(d)^2
// What the subtraction takes away is lost digits of the variance. Where it takes more than three quarters, two bits,
// the estimate was poor, and another pass goes around the mean that the first has found.
#pragma once
#include "common/macros.h"
#include "common/types.h"

namespace tilewright {
namespace {

constexpr double kPoorShare = 0.75;  // of mean(d^2)

// The estimate, of one mean or of a vector of them, as it may be used: one that is not finite would hide where Inf and
// NaN lie.
template <typename V>
inline TILEWRIGHT_INLINE V finite_or_zero(V estimate) {
  return estimate - estimate == V{} ? estimate : V{};
}

}  // namespace
}  // namespace tilewright

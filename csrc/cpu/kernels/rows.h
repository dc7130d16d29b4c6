// Loops over one contiguous row, shared by every kernel that sweeps rows: all whole vectors, then one tail.
#pragma once
#include "common/macros.h"
#include "common/types.h"

namespace tilewright {
namespace {

// Calls step(offset, n): n is the constant kLanes for whole vectors and the rest for the one tail.
template <typename A, typename Step>
inline TILEWRIGHT_INLINE void for_each_vector(int64_t cols, const Step& step) {
  int64_t c = 0;
  for (; c + kLanes<A> <= cols; c += kLanes<A>) step(c, kLanes<A>);
  if (c < cols) step(c, cols - c);
}

// The sum of term(offset, n) over a row, where term gives a vector of which the first n lanes count.
// Four chains: add latency (3 cycles) x two ports wants six, and four already keep up with two loads a cycle.
template <typename A, typename Term>
inline TILEWRIGHT_INLINE A sum_terms(int64_t cols, const Term& term) {
  constexpr int64_t kStep = kLanes<A>;
  Vec<A> sum0{}, sum1{}, sum2{}, sum3{};
  int64_t c = 0;
  for (; c + 4 * kStep <= cols; c += 4 * kStep) {
    sum0 += term(c, kStep);
    sum1 += term(c + kStep, kStep);
    sum2 += term(c + 2 * kStep, kStep);
    sum3 += term(c + 3 * kStep, kStep);
  }
  for (; c + kStep <= cols; c += kStep) sum0 += term(c, kStep);
  if (c < cols) sum1 += keep_first(term(c, cols - c), cols - c);
  return reduce_add<A>((sum0 + sum1) + (sum2 + sum3));
}

}  // namespace
}  // namespace tilewright

// Loops over one contiguous row, shared by every kernel that sweeps rows: all whole vectors, then one tail.
#pragma once
#include "common/macros.h"
#include "common/types.h"

namespace tilewright {
namespace {

// Calls body(Flag<true>{}) or body(Flag<false>{}): a run-time choice made once, outside the loop, which then is
// compiled for either.
template <bool kValue>
struct Flag {
  static constexpr bool value = kValue;
};
template <typename Body>
inline TILEWRIGHT_INLINE void choose(bool flag, const Body& body) {
  if (flag) return body(Flag<true>{});
  body(Flag<false>{});
}

// Asks for a line that does not have to be there: nothing is read. Into L2, because L1 would have dropped what is asked
// for a row of an image ahead (depthwise on Zen 4, one thread: 1.5x of native, into L1 1.0x).
template <typename T>
inline TILEWRIGHT_INLINE void prefetch_line(const T* p) {
  constexpr int kRead = 0, kIntoL2 = 2;
  __builtin_prefetch(p, kRead, kIntoL2);
}
template <int kCount, typename T>
inline TILEWRIGHT_INLINE void prefetch_lines(const T* p, int64_t stride) {
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) prefetch_line(p + i * stride);
}

// May lines of `length` elements, one behind the other from p on, be written by stream()?
template <typename T>
inline bool can_stream(const T* p, int64_t length) {
  constexpr uint64_t kBytes = static_cast<uint64_t>(kLanes<Acc<T>>) * sizeof(T);
  return reinterpret_cast<uint64_t>(p) % kBytes == 0 && length % kLanes<Acc<T>> == 0;
}

template <bool kStream, typename T, typename V>
inline TILEWRIGHT_INLINE void store_or_stream(T* p, V v, int64_t n) {
  if constexpr (kStream) {
    stream(p, v);
  } else {
    store(p, v, n);
  }
}

// Calls body(Index<0>{}), ..., body(Index<kCount - 1>{}). An array indexed so is known to be registers before the
// optimiser looks at it; indexed by a loop variable, it is written back to the stack in every round.
template <int kIndex>
struct Index {
  constexpr operator int() const { return kIndex; }
};
template <int kCount, int kFirst = 0, typename Body>
inline TILEWRIGHT_INLINE void unrolled(const Body& body) {
  if constexpr (kFirst < kCount) {
    body(Index<kFirst>{});
    unrolled<kCount, kFirst + 1>(body);
  }
}

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

template <typename A>
inline TILEWRIGHT_INLINE Vec<A> broadcast_lane(Vec<A> v, int lane) {
  return broadcast<A>(v[lane]);
}

// Sums of neighbouring lanes: those of a in the lower half, those of b in the upper.
template <typename A>
inline TILEWRIGHT_INLINE Vec<A> add_neighbours(Vec<A> a, Vec<A> b) {
  decltype(a == b) even;
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes<A>; ++lane) even[lane] = 2 * lane;
  return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + 1);
}

// Lane i: the sum of the lanes of v[i], for a power of two of vectors, at most one for each lane; the lanes behind them
// repeat. Of sixteen vectors that is two shuffles each, where reduce_add takes four.
template <typename A, int kCount, int kWidth = kLanes<A>>
inline TILEWRIGHT_INLINE Vec<A> reduce_add_each(const Vec<A> (&v)[kCount]) {
  static_assert(kCount <= kWidth);
  if constexpr (kWidth == 1) {
    return v[0];
  } else {
    constexpr int kPairs = kCount > 1 ? kCount / 2 : 1;
    Vec<A> pairs[kPairs];
    unrolled<kPairs>([&](auto i) TILEWRIGHT_INLINE {
      pairs[i] = add_neighbours<A>(v[kCount > 1 ? 2 * i : 0], v[kCount > 1 ? 2 * i + 1 : 0]);
    });
    return reduce_add_each<A, kPairs, kWidth / 2>(pairs);
  }
}

}  // namespace
}  // namespace tilewright

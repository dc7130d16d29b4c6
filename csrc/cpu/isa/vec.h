// The vector vocabulary, written once over the compiler's vector types. Each vec_<isa>.h sets kVectorBytes, then
// includes this file, then adds what that ISA does better (masked tails, 16-bit conversions, square root, scaling by
// powers of two).
//
// Vec<A> is a register of kLanes<A> accumulators (float or double); + - * / and comparisons are the compiler's own, and
// a product followed by a sum contracts to one fma. Storage types are converted on load and store:
//   load(p)      kLanes elements          load(p, n)      the first n lanes, the rest 0; reads n elements only
//   store(p, v)  kLanes elements          store(p, v, n)  writes the first n only
// Pointers need no alignment beyond the element's.
#pragma once
#include <cstdint>

#include "common/macros.h"
#include "common/types.h"

namespace tilewright {
namespace {

typedef float VecF32 __attribute__((vector_size(kVectorBytes)));
typedef double VecF64 __attribute__((vector_size(kVectorBytes)));
typedef int32_t VecI32 __attribute__((vector_size(kVectorBytes)));
typedef uint32_t VecU32 __attribute__((vector_size(kVectorBytes)));
typedef int64_t VecI64 __attribute__((vector_size(kVectorBytes)));
typedef uint16_t VecU16Half __attribute__((vector_size(kVectorBytes / 2)));  // as many lanes as VecF32

template <typename A>
struct VecOf;
template <>
struct VecOf<float> {
  using type = VecF32;
};
template <>
struct VecOf<double> {
  using type = VecF64;
};
template <typename A>
using Vec = typename VecOf<A>::type;

template <typename A>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(A));

// x - {} keeps the sign of a negative zero, which x + {} would lose.
template <typename A>
inline Vec<A> broadcast(A x) {
  return x - Vec<A>{};
}

template <typename V>
inline V fma(V a, V b, V c) {
  return a * b + c;
}
template <typename V>
inline V max(V a, V b) {
  return a > b ? a : b;  // b where either is NaN
}
template <typename V>
inline V min(V a, V b) {
  return a < b ? a : b;
}

// v as a rounded value: keeps the compiler from contracting the product that made it into a later sum. Needed where a
// difference of equal products must be exactly 0. Emits no instruction.
template <typename V>
inline V rounded(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// v in a register: the compiler would rather read what several operations share from memory for each, and loads are as
// dear as they. Emits no instruction.
template <typename V>
inline V in_register(V v) {
  return rounded(v);
}

template <typename To, typename From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// --- float32, float64 ---
inline VecF32 load(const float* p) {
  VecF32 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline VecF64 load(const double* p) {
  VecF64 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, VecF32 v) { __builtin_memcpy(p, &v, sizeof(v)); }
inline void store(double* p, VecF64 v) { __builtin_memcpy(p, &v, sizeof(v)); }

// --- what each ISA defines in vec_<isa>.h (or takes from vec_portable.h) ---
// bfloat16 is the upper half of a float32; narrowing rounds to nearest even, keeps NaN (quiet) and denormals.
inline VecF32 widen_bf16(VecU16Half bits);
inline VecU16Half narrow_bf16(VecF32 v);
inline VecF32 widen_f16(VecU16Half bits);
inline VecU16Half narrow_f16(VecF32 v);  // nearest even
inline VecF32 load(const float* p, int64_t n);
inline VecF64 load(const double* p, int64_t n);
inline VecF32 load(const BF16* p, int64_t n);
inline VecF32 load(const F16* p, int64_t n);
inline void store(float* p, VecF32 v, int64_t n);
inline void store(double* p, VecF64 v, int64_t n);
inline void store(BF16* p, VecF32 v, int64_t n);
inline void store(F16* p, VecF32 v, int64_t n);
// store, past the caches where the ISA can: p is a multiple of the bytes stored. finish_streams() before others read.
inline void stream(float* p, VecF32 v);
inline void stream(double* p, VecF64 v);
inline void stream(BF16* p, VecF32 v);
inline void stream(F16* p, VecF32 v);
inline void finish_streams();
inline VecF32 sqrt(VecF32 v);
inline VecF64 sqrt(VecF64 v);
inline VecF32 scale_by_power_of_two(VecF32 v, VecF32 n);  // v * 2^n for a whole n
inline VecF64 scale_by_power_of_two(VecF64 v, VecF64 n);
// x as a fraction in [0, 1] and what scale_by_power_of_two takes for the rest. Infinities and NaN are safe.
template <typename V>
struct PowerParts {
  V fraction, whole;
};
inline PowerParts<VecF32> split_power(VecF32 x);
inline PowerParts<VecF64> split_power(VecF64 x);

inline VecF32 load(const BF16* p) {
  VecU16Half bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return widen_bf16(bits);
}
inline void store(BF16* p, VecF32 v) {
  const VecU16Half bits = narrow_bf16(v);
  __builtin_memcpy(p, &bits, sizeof(bits));
}
inline VecF32 load(const F16* p) {
  VecU16Half bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return widen_f16(bits);
}
inline void store(F16* p, VecF32 v) {
  const VecU16Half bits = narrow_f16(v);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

// v with lanes n and above set to 0.
inline VecF32 keep_first(VecF32 v, int64_t n) {
  VecI32 lane;
  for (int i = 0; i < kLanes<float>; ++i) lane[i] = i;
  return lane < static_cast<int32_t>(n) ? v : VecF32{};
}
inline VecF64 keep_first(VecF64 v, int64_t n) {
  VecI64 lane;
  for (int i = 0; i < kLanes<double>; ++i) lane[i] = i;
  return lane < n ? v : VecF64{};
}

// --- across lanes, always in the same tree order: halves are folded onto one another in registers ---
template <typename A, int kWidth = kLanes<A> / 2, typename Combine>
inline TILEWRIGHT_INLINE A fold_lanes(Vec<A> v, const Combine& combine) {
  constexpr int kCount = kLanes<A>;
  decltype(v == v) upper;
#pragma GCC unroll 16
  for (int lane = 0; lane < kCount; ++lane) upper[lane] = (lane + kWidth) % kCount;
  v = combine(v, __builtin_shuffle(v, upper));
  if constexpr (kWidth == 1) {
    return v[0];
  } else {
    return fold_lanes<A, kWidth / 2>(v, combine);
  }
}
template <typename A>
inline A reduce_add(Vec<A> v) {
  return fold_lanes<A>(v, [](Vec<A> a, Vec<A> b) TILEWRIGHT_INLINE { return a + b; });
}
template <typename A>
inline A reduce_max(Vec<A> v) {
  return fold_lanes<A>(v, [](Vec<A> a, Vec<A> b) TILEWRIGHT_INLINE { return max(a, b); });
}

// Swaps the right block of upper with the left one of lower, in blocks kWidth lanes wide.
template <typename A, int kWidth>
inline TILEWRIGHT_INLINE void exchange_blocks(Vec<A>& upper, Vec<A>& lower) {
  constexpr int kCount = kLanes<A>;
  decltype(upper == upper) low, high;
#pragma GCC unroll 16
  for (int lane = 0; lane < kCount; ++lane) {
    low[lane] = (lane & kWidth) == 0 ? lane : kCount + lane - kWidth;
    high[lane] = (lane & kWidth) == 0 ? lane + kWidth : kCount + lane;
  }
  const Vec<A> above = upper, below = lower;
  upper = __builtin_shuffle(above, below, low);
  lower = __builtin_shuffle(above, below, high);
}

// Lane r is what combine makes of all lanes of rows[r]: as many rows as lanes, halved in number and in width with each
// round, so 2 (n - 1) shuffles where rows one by one take n log2(n).
template <typename A, int kWidth = kLanes<A> / 2, typename Combine>
inline TILEWRIGHT_INLINE Vec<A> fold_rows(Vec<A>* rows, const Combine& combine) {
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    exchange_blocks<A, kWidth>(rows[i], rows[i + kWidth]);
    rows[i] = combine(rows[i], rows[i + kWidth]);
  }
  if constexpr (kWidth == 1) {
    return rows[0];
  } else {
    return fold_rows<A, kWidth / 2>(rows, combine);
  }
}

// --- powers of two: 2^x = 2^fraction * 2^whole ---
// 2^r, |r| <= 1/2, for activation.h, which reduces its arguments itself (softmax: kernels/exp2.h): a polynomial through
// Chebyshev nodes (relative error 2.6e-9 at degree 6 for float32, 5.7e-20 at degree 12 for float64: rounding
// dominates).
template <typename V, typename A, int kTerms>
inline V polynomial(V r, const A (&coefficients)[kTerms]) {
  V sum = V{} + coefficients[kTerms - 1];
#pragma GCC unroll 16
  for (int i = kTerms - 2; i >= 0; --i) sum = fma(sum, r, V{} + coefficients[i]);
  return sum;
}

template <typename A>
inline TILEWRIGHT_INLINE Vec<A> exp2_of_fraction(Vec<A> r) {
  if constexpr (sizeof(A) == 4) {
    constexpr float kTerms[] = {1.0f,
                                0.69314720670283259577f,
                                0.24022650922288758071f,
                                0.055503272266703020589f,
                                0.0096180566785246380754f,
                                0.001340042817761583794f,
                                0.00015461444698569129083f};
    return polynomial(r, kTerms);
  } else {
    constexpr double kTerms[] = {1.0,
                                 0.69314718055994530835,
                                 0.24022650695910071228,
                                 0.055504108664821698992,
                                 0.0096181291076284830543,
                                 0.0013333558146390352775,
                                 0.00015403530393362755291,
                                 1.5252733856293466416e-05,
                                 1.3215486815999976975e-06,
                                 1.017805119296064896e-07,
                                 7.0548943863483480445e-09,
                                 4.4566753410492058782e-10,
                                 2.5733568308756891235e-11};
    return polynomial(r, kTerms);
  }
}

// x to a whole number, for |x| below 2^22 or 2^51: adding and taking away 1.5 * 2^(mantissa bits) rounds.
template <typename A>
inline TILEWRIGHT_INLINE Vec<A> rounded_to_whole(Vec<A> x) {
  constexpr A kRound = sizeof(A) == 4 ? A(12582912.0) : A(6755399441055744.0);
  return (x + kRound) - kRound;
}

}  // namespace
}  // namespace tilewright

// The part of CUDA's device language that csrc/cuda uses, for a C++ compiler and the fibers of simt.h. What is not here
// does not compile in the emulation: add it with the meaning that CUDA's manual gives it.
#pragma once
#include <math.h>
#include <stdint.h>

#include <bit>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "cuda_runtime_api.h"
#include "simt.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline __attribute__((always_inline))
// The thread_local variables of this library lie in one piece, which simt.cpp fills before each block. AddressSanitizer
// guards only other variables, so its build gives up the filling for the guard zones.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

#define warpSize (static_cast<int>(::simt::kWarp))

// --- barriers, shuffles and votes -------------------------------------------------------------------------------------
using SimtWhere = std::source_location;

inline void __syncthreads(SimtWhere where = SimtWhere::current()) { simt::sync_block(where); }

inline void __syncwarp(unsigned mask = 0xffffffffu, SimtWhere where = SimtWhere::current()) {
  simt::rendezvous(simt::Collective::syncwarp, mask, simt::lane(), 0, where);
}

namespace simt {

inline void check_width(int width, std::source_location where) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail("a shuffle's width must be a power of two", where);
}

template <typename T>
T shuffle(Collective call, unsigned mask, T value, unsigned source, std::source_location where) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles values of 16 (half types), 32 and 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = rendezvous(call, mask, source, bits, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SimtWhere where = SimtWhere::current()) {
  simt::check_width(width, where);
  const unsigned lane = simt::lane(), segment = lane & ~static_cast<unsigned>(width - 1);
  return simt::shuffle(simt::Collective::shfl, mask, value,
                       segment + (static_cast<unsigned>(source) & static_cast<unsigned>(width - 1)), where);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SimtWhere where = SimtWhere::current()) {
  simt::check_width(width, where);
  const unsigned lane = simt::lane(), inside = lane & static_cast<unsigned>(width - 1);
  return simt::shuffle(simt::Collective::shfl_up, mask, value, delta > inside ? lane : lane - delta, where);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SimtWhere where = SimtWhere::current()) {
  simt::check_width(width, where);
  const unsigned lane = simt::lane(), inside = lane & static_cast<unsigned>(width - 1);
  const bool leaves = delta >= static_cast<unsigned>(width) - inside;
  return simt::shuffle(simt::Collective::shfl_down, mask, value, leaves ? lane : lane + delta, where);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, SimtWhere where = SimtWhere::current()) {
  simt::check_width(width, where);
  const unsigned lane = simt::lane(), source = lane ^ static_cast<unsigned>(lane_mask);
  // A lane of a later segment cannot be read, one of an earlier segment can: so says the manual.
  const unsigned end = (lane & ~static_cast<unsigned>(width - 1)) + static_cast<unsigned>(width);
  return simt::shuffle(simt::Collective::shfl_xor, mask, value, source >= end ? lane : source, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SimtWhere where = SimtWhere::current()) {
  return static_cast<unsigned>(
      simt::rendezvous(simt::Collective::ballot, mask, simt::lane(), predicate != 0, where));
}
inline int __any_sync(unsigned mask, int predicate, SimtWhere where = SimtWhere::current()) {
  return simt::rendezvous(simt::Collective::any, mask, simt::lane(), predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SimtWhere where = SimtWhere::current()) {
  return simt::rendezvous(simt::Collective::all, mask, simt::lane(), predicate != 0, where) == mask;
}

// --- loads and stores with a cache hint -------------------------------------------------------------------------------
namespace simt {
template <typename T>
T* aligned(T* pointer, std::source_location where) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(T) != 0) fail("a misaligned access", where);
  return pointer;
}
}  // namespace simt

#define SIMT_LOAD(name)                                                \
  template <typename T>                                                \
  T name(const T* from, SimtWhere where = SimtWhere::current()) {      \
    return *simt::aligned(from, where);                                \
  }
#define SIMT_STORE(name)                                               \
  template <typename T>                                                \
  void name(T* to, T value, SimtWhere where = SimtWhere::current()) {  \
    *simt::aligned(to, where) = value;                                 \
  }
SIMT_LOAD(__ldg)
SIMT_LOAD(__ldca)
SIMT_LOAD(__ldcg)
SIMT_LOAD(__ldcs)
SIMT_LOAD(__ldlu)
SIMT_LOAD(__ldcv)
SIMT_STORE(__stwb)
SIMT_STORE(__stcg)
SIMT_STORE(__stcs)
SIMT_STORE(__stwt)
#undef SIMT_LOAD
#undef SIMT_STORE

inline void __threadfence() {}
inline void __threadfence_block() {}
// Programmatic dependent launch: grids run one after another here.
inline void cudaGridDependencySynchronize() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {}

// --- numbers ----------------------------------------------------------------------------------------------------------
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>((int64_t{a} * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= ((x >> bit) & 1u) << (31 - bit);
  return reversed;
}

// Rounded once: the empty asm keeps the compiler from contracting the product or sum with what follows.
#define SIMT_ROUNDED(T, name, expression) \
  inline T name(T a, T b) {               \
    T result = expression;                \
    asm("" : "+x"(result));               \
    return result;                        \
  }
SIMT_ROUNDED(float, __fadd_rn, a + b)
SIMT_ROUNDED(float, __fsub_rn, a - b)
SIMT_ROUNDED(float, __fmul_rn, a* b)
SIMT_ROUNDED(float, __fdiv_rn, a / b)
SIMT_ROUNDED(double, __dadd_rn, a + b)
SIMT_ROUNDED(double, __dsub_rn, a - b)
SIMT_ROUNDED(double, __dmul_rn, a* b)
SIMT_ROUNDED(double, __ddiv_rn, a / b)
#undef SIMT_ROUNDED
inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return ::fma(a, b, c); }
inline float __fsqrt_rn(float x) { return ::sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / ::sqrt(static_cast<double>(x))); }

// The fast forms are exact here: what they lose, only hardware shows.
inline float rsqrtf(float x) { return __frsqrt_rn(x); }
inline float rsqrt(float x) { return __frsqrt_rn(x); }
inline double rsqrt(double x) { return 1.0 / ::sqrt(x); }
// The normal distribution's integral, exact in both tails.
inline float normcdff(float x) { return static_cast<float>(0.5 * ::erfc(-0.70710678118654752440 * x)); }
inline double normcdf(double x) { return static_cast<double>(0.5L * ::erfcl(-0.70710678118654752440084436210485L * x)); }
inline float normcdf(float x) { return normcdff(x); }
inline float __expf(float x) { return ::expf(x); }
inline float __logf(float x) { return ::logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

#define SIMT_MINMAX(T)                                 \
  inline T min(T a, T b) { return b < a ? b : a; }     \
  inline T max(T a, T b) { return a < b ? b : a; }
SIMT_MINMAX(int)
SIMT_MINMAX(unsigned)
SIMT_MINMAX(long)
SIMT_MINMAX(unsigned long)
SIMT_MINMAX(long long)
SIMT_MINMAX(unsigned long long)
#undef SIMT_MINMAX
// As fminf and fmaxf: the number where the other is NaN.
inline float min(float a, float b) { return ::fminf(a, b); }
inline float max(float a, float b) { return ::fmaxf(a, b); }
inline double min(double a, double b) { return ::fmin(a, b); }
inline double max(double a, double b) { return ::fmax(a, b); }

// One bit for each element, packed eight to a byte, the lowest first: reading the bits of a vector's lanes, selecting
// by them, and making and writing them.
#pragma once
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

// At least 25 bits from bit `position` on. Reads 4 bytes.
inline uint32_t load_bits(const uint8_t* bits, int64_t position) {
  uint32_t word;
  __builtin_memcpy(&word, bits + (position >> 3), sizeof(word));
  return word >> (position & 7);
}

// v in the lanes whose bit is set (bit i for lane i), 0 in the others.
#if defined(TILEWRIGHT_ISA_IS_AVX512)
inline VecF32 lanes_where(uint32_t bits, VecF32 v) { return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), v); }
inline VecF64 lanes_where(uint32_t bits, VecF64 v) { return _mm512_maskz_mov_pd(static_cast<__mmask8>(bits), v); }
#else
template <typename A>
struct BitLanes;
template <>
struct BitLanes<float> {
  typedef uint32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct BitLanes<double> {
  typedef uint64_t type __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
inline TILEWRIGHT_INLINE Vec<A> lanes_where_bit(uint32_t bits, Vec<A> v) {
  using V = Vec<A>;
  using Lanes = typename BitLanes<A>::type;
  Lanes bit_of_lane;
  for (int lane = 0; lane < kLanes<A>; ++lane) bit_of_lane[lane] = 1u << lane;
  const auto set = ((Lanes{} + bits) & bit_of_lane) == bit_of_lane;
  return bit_cast<V>(bit_cast<Lanes>(v) & bit_cast<Lanes>(set));
}
inline VecF32 lanes_where(uint32_t bits, VecF32 v) { return lanes_where_bit<float>(bits, v); }
inline VecF64 lanes_where(uint32_t bits, VecF64 v) { return lanes_where_bit<double>(bits, v); }
#endif

// Bit i: lane i is above the threshold, or NaN.
#if defined(TILEWRIGHT_ISA_IS_AVX512)
inline uint32_t bits_not_below(VecF32 v, VecF32 threshold) { return _mm512_cmp_ps_mask(v, threshold, _CMP_NLE_UQ); }
inline uint32_t bits_not_below(VecF64 v, VecF64 threshold) { return _mm512_cmp_pd_mask(v, threshold, _CMP_NLE_UQ); }
#elif defined(TILEWRIGHT_ISA_IS_AVX2)
inline uint32_t bits_not_below(VecF32 v, VecF32 threshold) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, threshold, _CMP_NLE_UQ)));
}
inline uint32_t bits_not_below(VecF64 v, VecF64 threshold) {
  return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(v, threshold, _CMP_NLE_UQ)));
}
#else
// Lane against lane: of a comparison of whole vectors, subscripted, GCC 12 reads a wrong lane under
// -fsanitize=bounds,shift.
template <typename V>
inline uint32_t bits_not_below(V v, V threshold) {
  uint32_t bits = 0;
  for (unsigned lane = 0; lane < sizeof(V) / sizeof(v[0]); ++lane) {
    bits |= (v[lane] <= threshold[lane] ? 0u : 1u) << lane;
  }
  return bits;
}
#endif

// Writes the first n of kLaneCount bits to `position`, a multiple of kLaneCount; bytes are begun by the first lanes to
// write to them, so a line of bits is written from its begin.
template <int kLaneCount>
inline TILEWRIGHT_INLINE void store_bits(uint8_t* bits, int64_t position, uint32_t lanes, int64_t n) {
  uint8_t* p = bits + (position >> 3);
  if (n < kLaneCount) lanes &= (1u << n) - 1;
  if constexpr (kLaneCount < 8) {
    const uint32_t before = (position & 7) == 0 ? 0u : *p;
    *p = static_cast<uint8_t>(before | lanes << (position & 7));
  } else {
    p[0] = static_cast<uint8_t>(lanes);
    if (kLaneCount > 8 && n > 8) p[1] = static_cast<uint8_t>(lanes >> 8);
  }
}

}  // namespace
}  // namespace tilewright

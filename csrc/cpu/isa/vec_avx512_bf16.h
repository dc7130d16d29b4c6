// AVX-512 with its bfloat16 instructions: products of pairs of bfloat16, added to float32. Nothing else differs from
// AVX-512, so only the families that multiply bfloat16 matrices are compiled for it (TILEWRIGHT_BF16_FAMILIES).
//
// vdpbf16ps and vcvtneps2bf16 take denormals for 0 and give 0 for them, whatever the processor's mode, and the former
// rounds the sum of the two products once more than a chain of fmas would. Native's products of bfloat16 are made of
// them too, with the same zeros. Elsewhere native converts without them, and so do we.
#pragma once
#include "cpu/isa/vec_avx512.h"
#define TILEWRIGHT_ISA_HAS_BF16_DOT 1

namespace tilewright {
namespace {

// Values k and k + 1 of an operand, k even: an element of the products' inner loop. Aligned as one value is.
struct BF16Pair {
  BF16 value[2];
};
template <>
struct VecOf<BF16Pair> {
  using type = VecU32;
};

inline VecU32 load(const BF16Pair* p) { return bit_cast<VecU32>(_mm512_loadu_si512(p)); }
inline void store(BF16Pair* p, VecU32 pairs) { _mm512_storeu_si512(p, bit_cast<__m512i>(pairs)); }
template <>
inline VecU32 broadcast<BF16Pair>(BF16Pair pair) {
  return VecU32{} + bit_cast<uint32_t>(pair);
}

// Pairs of values that lie one behind the other: 32 of them, or the first n and zeros.
inline VecU32 load_pairs(const BF16* p) { return bit_cast<VecU32>(_mm512_loadu_si512(p)); }
inline VecU32 load_pairs(const BF16* p, int64_t n) {
  return bit_cast<VecU32>(_mm512_maskz_loadu_epi16(_bzhi_u32(0xffffffffu, static_cast<unsigned>(n)), p));
}
inline void store_pairs(BF16* p, VecU32 pairs) { _mm512_storeu_si512(p, bit_cast<__m512i>(pairs)); }
inline void store_pairs(BF16* p, VecU32 pairs, int64_t n) {
  _mm512_mask_storeu_epi16(p, _bzhi_u32(0xffffffffu, static_cast<unsigned>(n)), bit_cast<__m512i>(pairs));
}
// Pair i: even[i] and odd[i], for the first n (at most 16) and zeros. A null pointer stands for zeros.
inline VecU32 load_pairs_across(const BF16* even, const BF16* odd, int64_t n) {
  const auto widened = [n](const BF16* p) {
    return p == nullptr ? _mm512_setzero_si512() : _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask16(n), p));
  };
  return bit_cast<VecU32>(_mm512_or_si512(widened(even), _mm512_slli_epi32(widened(odd), 16)));
}

// store(), with denormals as 0: of results of products.
inline void store_flushed(BF16* p, VecF32 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
inline void store_flushed(BF16* p, VecF32 v, int64_t n) {
  _mm256_mask_storeu_epi16(p, mask16(n), bit_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}

// Pair i: even[i] and odd[i], rounded, denormals as 0.
inline VecU32 pairs_across(VecF32 even, VecF32 odd) {
  const auto rounded = [](VecF32 v) { return _mm512_cvtepu16_epi32(bit_cast<__m256i>(_mm512_cvtneps_pbh(v))); };
  return bit_cast<VecU32>(_mm512_or_si512(rounded(even), _mm512_slli_epi32(rounded(odd), 16)));
}

// sums + the two products of each pair of pairs
inline VecF32 fma(VecU32 a, VecU32 b, VecF32 sums) {
  return _mm512_dpbf16_ps(sums, bit_cast<__m512bh>(a), bit_cast<__m512bh>(b));
}

}  // namespace
}  // namespace tilewright

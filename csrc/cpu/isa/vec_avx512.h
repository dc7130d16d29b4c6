// 64-byte vectors: AVX-512 F, BW, DQ, VL. Tails are masked loads and stores, which touch no memory behind the mask.
#pragma once
#include <immintrin.h>
#define TILEWRIGHT_ISA_IS_AVX512 1
namespace tilewright {
namespace {
constexpr long kVectorBytes = 64;
}
}  // namespace tilewright
#include "cpu/isa/vec.h"

namespace tilewright {
namespace {

inline __mmask16 mask16(int64_t n) { return static_cast<__mmask16>(_bzhi_u32(0xffffu, static_cast<unsigned>(n))); }
inline __mmask8 mask8(int64_t n) { return static_cast<__mmask8>(_bzhi_u32(0xffu, static_cast<unsigned>(n))); }

inline VecF32 load(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(mask16(n), p); }
inline VecF64 load(const double* p, int64_t n) { return _mm512_maskz_loadu_pd(mask8(n), p); }
inline void store(float* p, VecF32 v, int64_t n) { _mm512_mask_storeu_ps(p, mask16(n), v); }
inline void store(double* p, VecF64 v, int64_t n) { _mm512_mask_storeu_pd(p, mask8(n), v); }

inline VecF32 widen_bf16(VecU16Half bits) {
  return bit_cast<VecF32>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bit_cast<__m256i>(bits)), 16));
}
// Seven instructions, of which the last picks the upper halves. (vcvtneps2bf16 would be one, but takes denormals for
// 0.)
inline VecU16Half narrow_bf16(VecF32 v) {
  const __m512i bits = bit_cast<__m512i>(v);
  const __m512i last_kept = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i half_up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  const __mmask16 number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
  const __m512i rounded = _mm512_mask_add_epi32(_mm512_set1_epi32(0x7fc00000), number, half_up, last_kept);
  __m512i upper_halves{};
  static const uint16_t kOdd[32] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  __builtin_memcpy(&upper_halves, kOdd, sizeof(upper_halves));
  return bit_cast<VecU16Half>(_mm512_castsi512_si256(_mm512_permutexvar_epi16(upper_halves, rounded)));
}
inline VecF32 widen_f16(VecU16Half bits) { return _mm512_cvtph_ps(bit_cast<__m256i>(bits)); }
inline VecU16Half narrow_f16(VecF32 v) {
  return bit_cast<VecU16Half>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline VecF32 load(const BF16* p, int64_t n) {
  return widen_bf16(bit_cast<VecU16Half>(_mm256_maskz_loadu_epi16(mask16(n), p)));
}
inline VecF32 load(const F16* p, int64_t n) {
  return widen_f16(bit_cast<VecU16Half>(_mm256_maskz_loadu_epi16(mask16(n), p)));
}
inline void store(BF16* p, VecF32 v, int64_t n) {
  _mm256_mask_storeu_epi16(p, mask16(n), bit_cast<__m256i>(narrow_bf16(v)));
}
inline void store(F16* p, VecF32 v, int64_t n) {
  _mm256_mask_storeu_epi16(p, mask16(n), bit_cast<__m256i>(narrow_f16(v)));
}

inline void stream(float* p, VecF32 v) { _mm512_stream_ps(p, v); }
inline void stream(double* p, VecF64 v) { _mm512_stream_pd(p, v); }
inline void stream(BF16* p, VecF32 v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(narrow_bf16(v)));
}
inline void stream(F16* p, VecF32 v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(narrow_f16(v)));
}
inline void finish_streams() { _mm_sfence(); }

inline VecF32 sqrt(VecF32 v) { return _mm512_sqrt_ps(v); }
inline VecF64 sqrt(VecF64 v) { return _mm512_sqrt_pd(v); }
inline VecF32 scale_by_power_of_two(VecF32 v, VecF32 n) { return _mm512_scalef_ps(v, n); }
inline VecF64 scale_by_power_of_two(VecF64 v, VecF64 n) { return _mm512_scalef_pd(v, n); }
// The reduction gives 0 for infinities, and scaling rounds its exponent down by itself.
inline PowerParts<VecF32> split_power(VecF32 x) {
  return {_mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC), x};
}
inline PowerParts<VecF64> split_power(VecF64 x) {
  return {_mm512_reduce_pd(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC), x};
}

}  // namespace
}  // namespace tilewright

// 32-byte vectors: AVX2, FMA, F16C.
#pragma once
#include <immintrin.h>
#define TILEWRIGHT_ISA_IS_AVX2 1
namespace tilewright {
namespace {
constexpr long kVectorBytes = 32;
}
}  // namespace tilewright
#include "cpu/isa/vec_portable.h"

namespace tilewright {
namespace {

// The first n lanes: n words of ones, from a window over ones and zeros.
inline __m256i first_words(int64_t n) {
  static const int32_t kWords[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kWords + 8 - n));
}
inline VecF32 load(const float* p, int64_t n) { return n == 8 ? load(p) : _mm256_maskload_ps(p, first_words(n)); }
inline VecF64 load(const double* p, int64_t n) { return n == 4 ? load(p) : _mm256_maskload_pd(p, first_words(2 * n)); }
inline void store(float* p, VecF32 v, int64_t n) {
  if (n == 8) return store(p, v);
  _mm256_maskstore_ps(p, first_words(n), v);
}
inline void store(double* p, VecF64 v, int64_t n) {
  if (n == 4) return store(p, v);
  _mm256_maskstore_pd(p, first_words(2 * n), v);
}

inline VecF32 sqrt(VecF32 v) { return _mm256_sqrt_ps(v); }
inline VecF64 sqrt(VecF64 v) { return _mm256_sqrt_pd(v); }
inline VecF32 widen_f16(VecU16Half bits) { return _mm256_cvtph_ps(bit_cast<__m128i>(bits)); }
inline VecU16Half narrow_f16(VecF32 v) {
  return bit_cast<VecU16Half>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

inline void stream(float* p, VecF32 v) { _mm256_stream_ps(p, v); }
inline void stream(double* p, VecF64 v) { _mm256_stream_pd(p, v); }
inline void stream(BF16* p, VecF32 v) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), bit_cast<__m128i>(narrow_bf16(v)));
}
inline void stream(F16* p, VecF32 v) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), bit_cast<__m128i>(narrow_f16(v)));
}
inline void finish_streams() { _mm_sfence(); }

}  // namespace
}  // namespace tilewright

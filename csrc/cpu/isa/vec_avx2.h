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

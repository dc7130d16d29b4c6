// 16-byte vectors: SSE2 on x86-64, NEON on Arm, whatever the compiler has elsewhere. No intrinsics.
#pragma once
#define TILEWRIGHT_ISA_IS_BASELINE 1
namespace tilewright {
namespace {
constexpr long kVectorBytes = 16;
}
}  // namespace tilewright
#include "cpu/isa/vec_portable.h"

namespace tilewright {
namespace {

inline VecF32 load(const float* p, int64_t n) { return load_through_buffer(p, n); }
inline VecF64 load(const double* p, int64_t n) { return load_through_buffer(p, n); }
inline void store(float* p, VecF32 v, int64_t n) { store_through_buffer(p, v, n); }
inline void store(double* p, VecF64 v, int64_t n) { store_through_buffer(p, v, n); }

inline VecF32 sqrt(VecF32 v) {
  for (int i = 0; i < 4; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}
inline VecF64 sqrt(VecF64 v) {
  for (int i = 0; i < 2; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
}

// binary16 -> binary32: the exponent is rebiased by a multiplication, which also normalises denormals; Inf and NaN keep
// theirs.
inline VecF32 widen_f16(VecU16Half half_bits) {
  const VecU32 bits = __builtin_convertvector(half_bits, VecU32);
  const VecU32 magnitude = (bits & 0x7fffu) << 13;
  const VecF32 scaled = bit_cast<VecF32>(magnitude) * 0x1p112f;
  const VecU32 special = magnitude | 0x7f800000u;
  const VecU32 value = (bits & 0x7c00u) == 0x7c00u ? special : bit_cast<VecU32>(scaled);
  return bit_cast<VecF32>(value | ((bits & 0x8000u) << 16));
}

// binary32 -> binary16, nearest even. Normals by integer rounding of the mantissa; denormals by adding 0.5, whose last
// mantissa bit is worth one half-precision denormal, so that the addition itself rounds.
inline VecU16Half narrow_f16(VecF32 v) {
  const VecU32 bits = bit_cast<VecU32>(v);
  const VecU32 magnitude = bits & 0x7fffffffu;
  const VecU32 normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const VecU32 denormal = bit_cast<VecU32>(bit_cast<VecF32>(magnitude) + 0.5f) - 0x3f000000u;
  VecU32 half = magnitude < 0x38800000u ? denormal : normal;
  half = magnitude >= 0x477ff000u ? VecU32{} + 0x7c00u : half;
  half = magnitude > 0x7f800000u ? VecU32{} + 0x7e00u : half;
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000u), VecU16Half);
}

inline void stream(float* p, VecF32 v) { store(p, v); }
inline void stream(double* p, VecF64 v) { store(p, v); }
inline void stream(BF16* p, VecF32 v) { store(p, v); }
inline void stream(F16* p, VecF32 v) { store(p, v); }
inline void finish_streams() {}

}  // namespace
}  // namespace tilewright

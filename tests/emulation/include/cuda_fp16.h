// binary16 as storage with conversions: kernels compute in float32.
#pragma once
#include <bit>

#include "vector_types.h"

struct __half_raw {
  unsigned short x;
};

struct __half {
  unsigned short bits;
  __half() = default;
  __half(__half_raw raw) : bits(raw.x) {}
  operator __half_raw() const { return {bits}; }
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return __half_raw{bits}; }

inline float __half2float(__half x) {
  const unsigned sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 0x1fu, mantissa = x.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal or zero: exact
  return std::bit_cast<float>(sign | std::bit_cast<unsigned>(magnitude));
}

// To nearest, ties to even; every NaN becomes 0x7fff, as on the device.
inline __half __float2half_rn(float x) {
  const unsigned bits = std::bit_cast<unsigned>(x), magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<unsigned short>((bits >> 16) & 0x8000u);
  unsigned result;
  if (magnitude > 0x7f800000u) return __ushort_as_half(0x7fff);
  if (magnitude >= 0x47800000u) {
    result = 0x7c00;  // 65536 and more, infinity
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 puts the last bit of a binary16 subnormal at the end of the float32 mantissa.
    result = std::bit_cast<unsigned>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    // Rounds 65520 ... 65535 up into infinity's pattern by itself.
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return __ushort_as_half(static_cast<unsigned short>(sign | result));
}
inline __half __float2half(float x) { return __float2half_rn(x); }

inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }

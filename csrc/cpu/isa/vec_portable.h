// The parts of the vector vocabulary that need no instruction of their own; for ISAs without masked memory access.
#pragma once
#include "cpu/isa/vec.h"

namespace tilewright {
namespace {

// --- tails: through a zeroed buffer, so that nothing beyond the n elements is touched. Loops pass a constant n for
// whole vectors, which must not take that way: a store and a load of another width stall. ---
template <typename T>
inline auto load_through_buffer(const T* p, int64_t n) {
  if (n == kLanes<Acc<T>>) return load(p);
  T lanes[kLanes<Acc<T>>] = {};
  __builtin_memcpy(lanes, p, static_cast<uint64_t>(n) * sizeof(T));
  return load(lanes);
}
template <typename T, typename V>
inline void store_through_buffer(T* p, V v, int64_t n) {
  if (n == kLanes<Acc<T>>) return store(p, v);
  T lanes[kLanes<Acc<T>>];
  store(lanes, v);
  __builtin_memcpy(p, lanes, static_cast<uint64_t>(n) * sizeof(T));
}
inline VecF32 load(const BF16* p, int64_t n) { return load_through_buffer(p, n); }
inline VecF32 load(const F16* p, int64_t n) { return load_through_buffer(p, n); }
inline void store(BF16* p, VecF32 v, int64_t n) { store_through_buffer(p, v, n); }
inline void store(F16* p, VecF32 v, int64_t n) { store_through_buffer(p, v, n); }

inline VecF32 widen_bf16(VecU16Half bits) { return bit_cast<VecF32>(__builtin_convertvector(bits, VecU32) << 16); }
inline VecU16Half narrow_bf16(VecF32 v) {
  const VecU32 bits = bit_cast<VecU32>(v);
  const VecU32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecU32 quiet_nan = VecU32{} + 0x7fc0u;
  return __builtin_convertvector(v == v ? rounded : quiet_nan, VecU16Half);
}

// --- v * 2^n in two steps, so that results among the denormals are reached from a normal number ---
inline VecF32 scale_by_power_of_two(VecF32 v, VecF32 n) {
  const VecI32 whole = __builtin_convertvector(n, VecI32);
  const VecI32 half = whole >> 1;
  return v * bit_cast<VecF32>((half + 127) << 23) * bit_cast<VecF32>((whole - half + 127) << 23);
}
inline VecF64 scale_by_power_of_two(VecF64 v, VecF64 n) {
  const VecI64 whole = __builtin_convertvector(n, VecI64);
  const VecI64 half = whole >> 1;
  return v * bit_cast<VecF64>((half + 1023) << 52) * bit_cast<VecF64>((whole - half + 1023) << 52);
}

// Beyond the limit 2^x has left the format's denormals or its finite range. In this order of arguments NaN passes.
template <typename A>
inline PowerParts<Vec<A>> split_limited_power(Vec<A> x, A limit) {
  x = min(broadcast<A>(limit), max(broadcast<A>(-limit), x));
  const Vec<A> whole = rounded_to_whole<A>(x - A(0.5));
  return {x - whole, whole};
}
inline PowerParts<VecF32> split_power(VecF32 x) { return split_limited_power<float>(x, 160.0f); }
inline PowerParts<VecF64> split_power(VecF64 x) { return split_limited_power<double>(x, 1100.0); }

}  // namespace
}  // namespace tilewright

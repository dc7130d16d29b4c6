// Eight neighbouring elements (one call of Philox) as the unit of elementwise kernels.
#pragma once
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/vec.cuh"

namespace tilewright::gpu {

constexpr int kGroup = 8;
constexpr int kElementwiseBlock = 256;

// Groups that a thread has in flight: 64 bytes of each operand, for kernels that do little with them.
template <typename T>
constexpr int kGroupsOfThread = 64 / (kGroup * static_cast<int>(sizeof(T)));

// As many blocks as a GPU runs at a time, which then share the tiles evenly, or one for each tile where there are
// fewer.
inline int64_t elementwise_blocks(int64_t tiles, const Launch& where) {
  return std::max(int64_t{1}, std::min(tiles, int64_t{2048 / kElementwiseBlock} * where.multiprocessors));
}

struct DivMod {
  int64_t quotient, remainder;
};

// Both at least 0; 32-bit division, where that is enough, takes a quarter of the time.
__device__ __forceinline__ DivMod divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) {
    const uint32_t low = static_cast<uint32_t>(a), by = static_cast<uint32_t>(b), quotient = low / by;
    return {quotient, low - quotient * by};
  }
  const int64_t quotient = a / b;
  return {quotient, a - quotient * b};
}

// A group as it lies in memory, moved by accesses of kVec elements.
template <typename T, int kVec>
struct Group {
  Pack<T, kVec> part[kGroup / kVec];

  __device__ __forceinline__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < kGroup / kVec; ++i) part[i] = *reinterpret_cast<const Pack<T, kVec>*>(from + i * kVec);
  }
  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (int i = 0; i < kGroup / kVec; ++i) *reinterpret_cast<Pack<T, kVec>*>(to + i * kVec) = part[i];
  }
  __device__ __forceinline__ Acc<T> get(int i) const { return widen(part[i / kVec].value[i % kVec]); }
  __device__ __forceinline__ void set(int i, Acc<T> value) { part[i / kVec].value[i % kVec] = narrow<T>(value); }
};

// Is a base pointer aligned for accesses of kVec elements? Null is.
template <int kVec, typename T>
bool is_base_aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * kVec) == 0;
}

}  // namespace tilewright::gpu

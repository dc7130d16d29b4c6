// Sums over the threads that share a row. Butterflies, so that every thread ends with the same bits.
#pragma once
#include <cuda_runtime.h>

namespace tilewright::gpu {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Sum of each of `values` over groups of kThreads neighbouring threads; kThreads is a power of two that divides the
// block. Every thread of the block calls it: a group wider than a warp meets at a barrier.
template <int kThreads, int kValues, typename A>
__device__ __forceinline__ void sum_over_group(A (&values)[kValues]) {
  constexpr int kLanes = kThreads < kWarp ? kThreads : kWarp;
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int v = 0; v < kValues; ++v) values[v] += __shfl_xor_sync(kAllLanes, values[v], distance);
  }
  if constexpr (kThreads > kWarp) {
    constexpr int kWarpsOfGroup = kThreads / kWarp, kMaxWarps = 32;
    __shared__ A of_warp[kMaxWarps][kValues];
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
    if (lane == 0) {
#pragma unroll
      for (int v = 0; v < kValues; ++v) of_warp[warp][v] = values[v];
    }
    __syncthreads();
    const int first = warp / kWarpsOfGroup * kWarpsOfGroup;
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      A sum = A(0);
#pragma unroll
      for (int w = 0; w < kWarpsOfGroup; ++w) sum += of_warp[first + w][v];
      values[v] = sum;
    }
    __syncthreads();  // the array is written again by the next call
  }
}

}  // namespace tilewright::gpu

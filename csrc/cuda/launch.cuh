// The one way to launch a kernel, and what the SIMT emulation of tests/ needs to stand in for.
#pragma once
#include <cuda_runtime.h>

#include "cuda/launch.h"

namespace tilewright::gpu {

// Blocks of a grid in one dimension; the hardware's limit is 2^31 - 1, so launchers loop over more work than that.
constexpr int64_t kMaxBlocks = 0x7fffffff;

// More shared memory than a kernel gets without asking.
constexpr int kDefaultSharedBytes = 48 * 1024;

template <typename... Parameters, typename... Arguments>
Status launch(const Launch& where, void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes,
              const Arguments&... arguments) {
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (status != cudaSuccess) return status;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(where.stream);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// From sm_90 on conversions of 16-bit types are single instructions, and kernels of them can do with 64 registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kShortConversions = true;
#else
constexpr bool kShortConversions = false;
#endif

// The block's dynamic shared memory, as much as its launch asked for.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char tilewright_dynamic_shared[];
  return reinterpret_cast<T*>(tilewright_dynamic_shared);
#else
  return reinterpret_cast<T*>(simt::dynamic_shared());
#endif
}

}  // namespace tilewright::gpu

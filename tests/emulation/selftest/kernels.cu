// Kernels that prove the emulation: right ones, and ones with a planted bug each that it must find. The tests call
// run() through ctypes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <exception>
#include <string_view>

namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

struct Args {
  const float* in;
  float* out;
  int n;
  int option;
};

// --- right ------------------------------------------------------------------------------------------------------------

// out[block] = sum of the block's n numbers: shuffles, then shared memory.
__global__ void __launch_bounds__(256) block_sum(Args args) {
  __shared__ float of_warp[8];
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < args.n; i += static_cast<int>(blockDim.x)) {
    sum += args.in[blockIdx.x * static_cast<unsigned>(args.n) + static_cast<unsigned>(i)];
  }
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += of_warp[warp];
    args.out[blockIdx.x] = total;
  }
}

// Reverses each block's chunk of n floats through dynamic shared memory, four at a time.
__global__ void reverse(Args args) {
  auto* chunk = reinterpret_cast<float4*>(simt::dynamic_shared());
  const int count = args.n / 4, first = static_cast<int>(blockIdx.x) * count;
  const auto* in = reinterpret_cast<const float4*>(args.in) + first;
  auto* out = reinterpret_cast<float4*>(args.out) + first;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) chunk[i] = __ldcs(in + i);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const float4 v = chunk[count - 1 - i];
    __stcs(out + i, make_float4(v.w, v.z, v.y, v.x));
  }
}

// Every thread writes where it is: out[linear index of block and thread] = code.
__global__ void where_am_i(Args args) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  args.out[block * blockDim.x * blockDim.y * blockDim.z + thread] = static_cast<float>(block * 10000 + thread);
}

// One warp; 32 numbers of each warp function: 0 up, 1 down, 2 one, 3 xor in segments of 8, 4 ballot, 5 any, 6 all,
// 7 double, 8 the even lanes alone.
__global__ void warp_functions(Args args) {
  const int lane = static_cast<int>(threadIdx.x);
  const float x = args.in[lane];
  args.out[0 * 32 + lane] = __shfl_up_sync(kAllLanes, x, 3u);
  args.out[1 * 32 + lane] = __shfl_down_sync(kAllLanes, x, 3u, 16);
  args.out[2 * 32 + lane] = __shfl_sync(kAllLanes, x, 5, 8);
  args.out[3 * 32 + lane] = __shfl_xor_sync(kAllLanes, x, 3, 8);
  args.out[4 * 32 + lane] = static_cast<float>(__popc(__ballot_sync(kAllLanes, lane < 7)));
  args.out[5 * 32 + lane] = static_cast<float>(__any_sync(kAllLanes, lane == 31));
  args.out[6 * 32 + lane] = static_cast<float>(__all_sync(kAllLanes, lane != 31));
  args.out[7 * 32 + lane] = static_cast<float>(__shfl_xor_sync(kAllLanes, static_cast<double>(x), 1));
  __syncwarp();
  float even = 0.0f;
  if (lane % 2 == 0) even = __shfl_xor_sync(0x55555555u, x, 2);
  args.out[8 * 32 + lane] = even;
}

// Bits of the float -> 16-bit float -> float ways, n numbers.
__global__ void round_trip(Args args) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= args.n) return;
  args.out[i] = args.option == 0 ? __bfloat162float(__float2bfloat16_rn(args.in[i]))
                                 : __half2float(__float2half_rn(args.in[i]));
}

// --- wrong ------------------------------------------------------------------------------------------------------------

// Neighbours through shared memory without a barrier between writing and reading.
__global__ void lacks_barrier(Args args) {
  __shared__ float seen[256];
  seen[threadIdx.x] = args.in[threadIdx.x];
  args.out[threadIdx.x] = seen[blockDim.x - 1 - threadIdx.x];
}

// The second round writes while others still read the first one's values.
__global__ void lacks_second_barrier(Args args) {
  __shared__ float seen[256];
  float sum = 0.0f;
  for (int round = 0; round < 2; ++round) {
    seen[threadIdx.x] = args.in[threadIdx.x] * static_cast<float>(round + 1);
    __syncthreads();
    sum += seen[(threadIdx.x + 33) % blockDim.x];
  }
  args.out[threadIdx.x] = sum;
}

__global__ void reads_unwritten_shared(Args args) {
  __shared__ float seen[256];
  if (threadIdx.x % 2 == 0) seen[threadIdx.x] = 1.0f;
  __syncthreads();
  args.out[threadIdx.x] = seen[threadIdx.x];
}

__global__ void writes_behind_dynamic_shared(Args args) {
  auto* chunk = reinterpret_cast<float*>(simt::dynamic_shared());
  chunk[threadIdx.x + static_cast<unsigned>(args.option)] = args.in[threadIdx.x];
  __syncthreads();
  args.out[threadIdx.x] = chunk[threadIdx.x];
}

__global__ void writes_behind_static_shared(Args args) {
  __shared__ float seen[64];
  float* volatile pointer = seen;
  pointer[threadIdx.x + static_cast<unsigned>(args.option)] = args.in[threadIdx.x];
  __syncthreads();
  args.out[threadIdx.x] = seen[threadIdx.x];
}

__global__ void reads_behind_tensor(Args args) { args.out[threadIdx.x] = args.in[threadIdx.x + args.n]; }

__global__ void barrier_in_a_branch(Args args) {
  if (threadIdx.x < 32) __syncthreads();
  args.out[threadIdx.x] = 0.0f;
}

__global__ void different_barriers(Args args) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  args.out[threadIdx.x] = 0.0f;
}

__global__ void shuffle_in_a_branch(Args args) {
  float x = args.in[threadIdx.x];
  if (threadIdx.x % 32 < 20) x += __shfl_xor_sync(kAllLanes, x, 1);
  args.out[threadIdx.x] = x;
}

__global__ void shuffle_against_barrier(Args args) {
  float x = args.in[threadIdx.x];
  if (threadIdx.x % 32 < 20) {
    x += __shfl_xor_sync(kAllLanes, x, 1);
    __syncthreads();
  } else {
    __syncthreads();
  }
  args.out[threadIdx.x] = x;
}

__global__ void mask_lacks_caller(Args args) { args.out[threadIdx.x] = __shfl_sync(0xffffu, args.in[threadIdx.x], 0); }

__global__ void reads_lane_outside_mask(Args args) {
  float x = args.in[threadIdx.x];
  if (threadIdx.x % 32 < 16) x = __shfl_sync(0xffffu, x, 20);
  args.out[threadIdx.x] = x;
}

__global__ void different_masks(Args args) {
  float x = args.in[threadIdx.x];
  x = __shfl_xor_sync(threadIdx.x % 32 < 16 ? kAllLanes : 0xffff0000u, x, 1);
  args.out[threadIdx.x] = x;
}

__global__ void misaligned(Args args) {
  const float4 v = __ldg(reinterpret_cast<const float4*>(args.in + 1));
  args.out[threadIdx.x] = v.x;
}

// Which block is last decides the result.
__global__ void depends_on_block_order(Args args) {
  if (threadIdx.x == 0) args.out[0] = static_cast<float>(blockIdx.x);
}

// Lanes exchange through shared memory without __syncwarp.
__global__ void lacks_syncwarp(Args args) {
  __shared__ float seen[32];
  seen[threadIdx.x] = args.in[threadIdx.x];
  args.out[threadIdx.x] = seen[31 - threadIdx.x];
}

__global__ void has_syncwarp(Args args) {
  __shared__ float seen[32];
  seen[threadIdx.x] = args.in[threadIdx.x];
  __syncwarp();
  args.out[threadIdx.x] = seen[31 - threadIdx.x];
}

struct Entry {
  std::string_view name;
  void (*kernel)(Args);
};
#define ENTRY(kernel) {#kernel, kernel}
constexpr Entry kKernels[] = {ENTRY(block_sum),
                              ENTRY(reverse),
                              ENTRY(where_am_i),
                              ENTRY(warp_functions),
                              ENTRY(round_trip),
                              ENTRY(has_syncwarp),
                              ENTRY(lacks_barrier),
                              ENTRY(lacks_second_barrier),
                              ENTRY(lacks_syncwarp),
                              ENTRY(reads_unwritten_shared),
                              ENTRY(writes_behind_dynamic_shared),
                              ENTRY(writes_behind_static_shared),
                              ENTRY(reads_behind_tensor),
                              ENTRY(barrier_in_a_branch),
                              ENTRY(different_barriers),
                              ENTRY(shuffle_in_a_branch),
                              ENTRY(shuffle_against_barrier),
                              ENTRY(mask_lacks_caller),
                              ENTRY(reads_lane_outside_mask),
                              ENTRY(different_masks),
                              ENTRY(misaligned),
                              ENTRY(depends_on_block_order)};

}  // namespace

// grid and block: three numbers each. Returns a cudaError_t, or -1 with the violation's text in `message`.
extern "C" int selftest_run(const char* name, const unsigned* grid, const unsigned* block, int shared_bytes,
                            int opt_in_bytes, const float* in, float* out, int n, int option, char* message,
                            size_t message_bytes) {
  for (const Entry& entry : kKernels) {
    if (entry.name != name) continue;
    if (opt_in_bytes > 0) {
      const cudaError_t status =
          cudaFuncSetAttribute(entry.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, opt_in_bytes);
      if (status != cudaSuccess) return status;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(grid[0], grid[1], grid[2]);
    config.blockDim = dim3(block[0], block[1], block[2]);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    try {
      return cudaLaunchKernelEx(&config, entry.kernel, Args{in, out, n, option});
    } catch (const std::exception& error) {
      std::snprintf(message, message_bytes, "%s", error.what());
      return -1;
    }
  }
  std::snprintf(message, message_bytes, "no kernel %s", name);
  return -2;
}

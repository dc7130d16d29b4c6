#include "cuda/launch.cuh"

#include <atomic>

namespace tilewright::gpu {

const char* status_text(Status status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

int multiprocessors_of(int device) {
  constexpr int kMaxDevices = 128;
  static std::atomic<int> known[kMaxDevices];
  const bool cached = device >= 0 && device < kMaxDevices;
  int count = cached ? known[device].load(std::memory_order_relaxed) : 0;
  if (count > 0) return count;
  // Without an answer the launch itself will say what is wrong; any positive count makes a valid grid.
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) count = 1;
  if (cached) known[device].store(count, std::memory_order_relaxed);
  return count;
}

}  // namespace tilewright::gpu

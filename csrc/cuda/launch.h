// What a launcher is given beside its arguments, and what it returns. No torch and no CUDA here: bindings (torch, host
// compiler) and kernels (nvcc) both include it.
#pragma once
#include <cstdint>

namespace tilewright::gpu {

struct Launch {
  void* stream;  // a cudaStream_t
  int multiprocessors;
};

// A cudaError_t: 0 is success.
using Status = int;

const char* status_text(Status status);

// Of the device with this index; asked of the driver once.
int multiprocessors_of(int device);

}  // namespace tilewright::gpu

// From Tensor to a launch: device and stream by c10's device-generic guards, so that this compiles against a CPU build
// of torch and runs beside a CUDA build.
#pragma once
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <initializer_list>

#include "cuda/launch.h"
#include "ops/tensors.h"

namespace tilewright::gpu {

// While it lives, the tensor's device is the current one. Kernels go to that device's current stream. They get bare
// pointers, so the other operands (undefined ones left out) must lie there too.
class Call {
 public:
  Call(const char* op, const Tensor& tensor, std::initializer_list<const Tensor*> others = {})
      : op_(op), guard_(tensor.device()) {
    const c10::Device device = tensor.device();
    for (const Tensor* other : others) {
      TORCH_CHECK(!other->defined() || other->device() == device, op, ": all tensors must be on the same device, got ",
                  device, " and ", other->device());
    }
    if (!device.is_cuda()) {
      launch_ = {nullptr, multiprocessors_of(0)};  // the emulation
      return;
    }
    launch_.stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
    launch_.multiprocessors = multiprocessors_of(device.index());
  }

  const Launch& launch() const { return launch_; }

  void check(Status status) const {
    TORCH_CHECK(status == 0, op_, ": the CUDA kernel could not be launched: ", status_text(status),
                " (TILEWRIGHT_CUDA_BACKEND=native makes native PyTorch serve the GPU)");
  }

 private:
  const char* op_;
  c10::DeviceGuard guard_;
  Launch launch_;
};

// A new contiguous tensor on the device of `like`.
inline Tensor empty_like_in(const Tensor& like, at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::empty(sizes, like.options().dtype(dtype).memory_format(at::MemoryFormat::Contiguous));
}

inline Tensor contiguous(const Tensor& tensor) { return tensor.defined() ? tensor.contiguous() : tensor; }

// Pointers of parameters, which kernels read in one of two dtypes; null for an undefined tensor.
inline const void* any_data(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }
inline void* any_mutable_data(const Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

}  // namespace tilewright::gpu

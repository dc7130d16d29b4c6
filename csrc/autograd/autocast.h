// Autocast for ops that native runs in the lower precision: cast the operands, switch autocast off, call again.
#pragma once
#include <ATen/autocast_mode.h>

#include "ops/library.h"

namespace tilewright {

class AutocastOff {
 public:
  explicit AutocastOff(at::DeviceType device)
      : guard_(at::autocast::get_autocast_dispatch_key_from_device_type(device)) {}

 private:
  c10::impl::ExcludeDispatchKeyGuard guard_;
};

template <at::DeviceType kDevice>
Tensor lower_precision(const Tensor& tensor) {
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(kDevice), tensor, kDevice);
}

template <at::DeviceType kDevice>
OptionalTensor lower_precision(const OptionalTensor& tensor) {
  return is_defined(tensor) ? OptionalTensor(lower_precision<kDevice>(*tensor)) : tensor;
}

}  // namespace tilewright

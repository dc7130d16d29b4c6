// Autocast for ops that native runs in the lower precision: cast the operands, switch autocast off, call again.
#pragma once
#include <ATen/autocast_mode.h>

#include "ops/library.h"
#include "ops/op_name.h"

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

// What is no tensor stays as it is.
template <at::DeviceType kDevice, typename T>
const T& lower_precision(const T& argument) {
  return argument;
}

template <at::DeviceType kDevice, OpName kName, typename Result, typename... Args>
Result call_in_lower_precision(Args... args) {
  const AutocastOff off(kDevice);
  static const auto op = find_op<Result(Args...)>(kName.qualified().c_str());
  return op.call(lower_precision<kDevice>(args)...);
}

// The autocast kernel of op kName, whose signature is that of `function`.
template <OpName kName, at::DeviceType kDevice, typename Result, typename... Args>
void register_lower_precision(torch::Library& m, Result (* /*function*/)(Args...)) {
  m.impl(kName.text, call_in_lower_precision<kDevice, kName, Result, Args...>);
}

}  // namespace tilewright

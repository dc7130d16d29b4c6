// Autocast for ops that native runs in the lower precision, or in float32: cast the operands, switch autocast off, call
// again.
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

enum class Precision { kLower, kFloat };

template <at::DeviceType kDevice, Precision kPrecision>
Tensor cast(const Tensor& tensor) {
  const auto dtype = kPrecision == Precision::kFloat ? at::kFloat : at::autocast::get_autocast_dtype(kDevice);
  return at::autocast::cached_cast(dtype, tensor, kDevice);
}

template <at::DeviceType kDevice, Precision kPrecision>
OptionalTensor cast(const OptionalTensor& tensor) {
  return is_defined(tensor) ? OptionalTensor(cast<kDevice, kPrecision>(*tensor)) : tensor;
}

// What is no tensor stays as it is.
template <at::DeviceType kDevice, Precision kPrecision, typename T>
const T& cast(const T& argument) {
  return argument;
}

template <at::DeviceType kDevice, Precision kPrecision, OpName kName, typename Result, typename... Args>
Result call_in_precision(Args... args) {
  const AutocastOff off(kDevice);
  static const auto op = find_op<Result(Args...)>(kName.qualified().c_str());
  return op.call(cast<kDevice, kPrecision>(args)...);
}

// The autocast kernel of op kName, whose signature is that of `function`.
template <OpName kName, at::DeviceType kDevice, Precision kPrecision = Precision::kLower, typename Result,
          typename... Args>
void register_precision(torch::Library& m, Result (* /*function*/)(Args...)) {
  m.impl(kName.text, call_in_precision<kDevice, kPrecision, kName, Result, Args...>);
}

}  // namespace tilewright

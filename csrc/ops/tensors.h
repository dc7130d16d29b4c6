// From Tensor to what kernels take, on any device: typed pointers, accumulation-type parameters, one switch on dtype.
#pragma once
#include <ATen/ops/empty.h>

#include "common/types.h"
#include "ops/library.h"

namespace tilewright {

// The pointer as kernels see it, null for an undefined tensor. The caller has checked the dtype.
template <typename T>
const T* const_data(const Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}
template <typename T>
T* mutable_data(const Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

// The one switch on dtype: calls body with a value of the kernel's element type.
template <typename Body>
void dispatch_floating(at::ScalarType dtype, const char* op, const Body& body) {
  switch (dtype) {
    case at::kFloat:
      return body(float{});
    case at::kDouble:
      return body(double{});
    case at::kBFloat16:
      return body(BF16{});
    case at::kHalf:
      return body(F16{});
    default:
      TORCH_CHECK(false, op, ": input must be float32, float64, bfloat16 or float16, got ", dtype);
  }
}

// The dtype sums and statistics of an op on `dtype` are kept in.
inline at::ScalarType accumulation_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// A parameter (weight, bias, ...) contiguous and in the accumulation type; undefined stays undefined. No copy for
// float32 and float64, a few KB otherwise. The test comes first because even a .to() that does nothing costs 0.2 us.
inline Tensor as_accumulator(const Tensor& parameter, at::ScalarType dtype) {
  if (!parameter.defined()) return parameter;
  const auto sum_dtype = accumulation_dtype(dtype);
  return (parameter.scalar_type() == sum_dtype ? parameter : parameter.to(sum_dtype)).contiguous();
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace tilewright

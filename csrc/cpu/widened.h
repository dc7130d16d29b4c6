// Parameters as the kernels read them: contiguous, in the accumulation type of the tensors beside them.
#pragma once
#include "cpu/kernel_table.h"
#include "cpu/tensors.h"

namespace tilewright {

// Of a 16-bit parameter by a kernel of our own: to() goes through the dispatcher, and costs a small call more than its
// arithmetic.
inline Tensor widened(const Tensor& parameter, at::ScalarType dtype) {
  if (!parameter.defined()) return parameter;
  const auto own = parameter.scalar_type();
  const bool widens = (own == at::kBFloat16 || own == at::kHalf) && accumulation_dtype(dtype) == at::kFloat;
  if (!widens || !parameter.is_contiguous()) {
    return as_accumulator(parameter, dtype);
  }
  Tensor result = empty_cpu(parameter.sizes(), at::kFloat);
  dispatch_floating(own, "widened", [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) == 2) {
      kernels<T>().widen.run(const_data<T>(parameter), mutable_data<float>(result), parameter.numel());
    }
  });
  return result;
}

}  // namespace tilewright

// How an op's C++ entry reaches the dispatcher: the handle is found once, the call is then two loads and a jump.
#pragma once
#include "ops/torch.h"

namespace tilewright {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename Signature>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// The tensor or an undefined one: kernels test data pointers, not optionals.
inline Tensor value_or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }

inline bool is_defined(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }

}  // namespace tilewright

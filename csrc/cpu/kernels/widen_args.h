// What cpu/widened.h hands to kernels/widen.h.
#pragma once
#include "common/types.h"

namespace tilewright {

template <typename T>
struct WidenKernels {
  void (*run)(const T* values, Acc<T>* widened, int64_t count);
};

}  // namespace tilewright

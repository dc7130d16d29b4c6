// What cpu/masked_scale.cpp hands to kernels/masked_scale.h.
#pragma once
#include "common/types.h"

namespace tilewright {

template <typename T>
struct MaskedScaleArgs {
  const T* x;
  const uint8_t* mask;  // 0 or 1 for each element
  T* y;
  Acc<T> scale;
};

template <typename T>
struct MaskedScaleKernels {
  void (*forward)(const MaskedScaleArgs<T>&, int64_t begin, int64_t end);
};

}  // namespace tilewright

// What cpu/roofline.cpp asks of kernels/roofline.h.
#pragma once
#include "common/types.h"

namespace tilewright {

template <typename T>
struct RooflineKernels {
  // Runs `steps` rounds of independent multiply-adds in registers and returns the floating-point operations they made
  // (a multiply-add counts two). *sink takes a value that depends on all of them, so that none is optimised away.
  int64_t (*multiply_add)(int64_t steps, Acc<T>* sink);
};

}  // namespace tilewright

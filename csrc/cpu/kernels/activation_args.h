// Activations that kernels fuse behind a product or a normalisation.
#pragma once
#include "common/types.h"

namespace tilewright {

enum class Activation : int { kNone, kRelu, kGelu, kGeluTanh, kSilu };

template <typename T>
struct ActivationKernels {
  // dx = dy * act'(x), element by element. For kRelu x may be the activation's input or its output.
  void (*backward)(Activation, const T* dy, const T* x, T* dx, int64_t begin, int64_t end);
};

}  // namespace tilewright

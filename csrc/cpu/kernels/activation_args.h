// Activations that kernels fuse behind a product or a normalisation.
#pragma once
#include "common/types.h"

namespace tilewright {

enum class Activation : int { kNone, kRelu, kRelu6, kGelu, kGeluTanh, kSilu };

// Is the activation's gradient as well read from its output, which autograd keeps anyway?
constexpr bool gradient_reads_output(Activation activation) {
  return activation == Activation::kRelu || activation == Activation::kRelu6;
}

template <typename T>
struct ActivationKernels {
  // dx = dy * act'(x), element by element. For kRelu and kRelu6 x may be what the activation was applied to, or its
  // output.
  void (*backward)(Activation, const T* dy, const T* x, T* dx, int64_t begin, int64_t end);
};

}  // namespace tilewright

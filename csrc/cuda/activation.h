// The gradient of an activation on the GPU: dx = dy * act'(x), element by element. For relu x may be the activation's
// input or its output.
#pragma once
#include "common/types.h"
#include "cpu/kernels/activation_args.h"
#include "cuda/launch.h"

namespace tilewright::gpu {

template <typename T>
struct ActivationBackwardArgs {
  const T *dy, *x;
  T* dx;
  int64_t size;
  Activation activation;
};

template <typename T>
Status activation_backward(const ActivationBackwardArgs<T>& args, const Launch& launch);

}  // namespace tilewright::gpu

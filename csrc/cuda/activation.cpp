// The gradient of an activation on the GPU: Tensors of one dense layout to one run of elements.
#include "cuda/activation.h"

#include <ATen/ops/empty_like.h>

#include "cuda/call.h"
#include "cuda/registration.h"
#include "ops/linear.h"

namespace tilewright::gpu {
namespace {

Tensor activation_backward_cuda(const Tensor& grad_output, const Tensor& saved, c10::string_view activation_name) {
  const Activation activation = activation_from_name(activation_name);
  check_activation_backward(grad_output, saved);
  const Call call("activation_backward", saved, {&grad_output});
  // Any dense layout will do, as long as all three have it: channels_last stays channels_last.
  const Tensor dx = at::empty_like(saved);
  if (saved.numel() == 0) return dx;
  const auto in_layout = [&dx](const Tensor& tensor) {
    return tensor.strides().equals(dx.strides()) ? tensor : at::empty_like(dx).copy_(tensor);
  };
  const Tensor x = in_layout(saved), dy = in_layout(grad_output);
  dispatch_floating(x.scalar_type(), "activation_backward", [&](auto element) {
    using T = decltype(element);
    const ActivationBackwardArgs<T> args{const_data<T>(dy), const_data<T>(x), mutable_data<T>(dx), x.numel(),
                                         activation};
    call.check(activation_backward(args, call.launch()));
  });
  return dx;
}

}  // namespace
}  // namespace tilewright::gpu

TILEWRIGHT_CUDA_LIBRARY(activation, m) { m.impl("activation_backward", tilewright::gpu::activation_backward_cuda); }

#include "ops/depthwise.h"

#include "ops/gpu.h"

namespace tilewright {

Conv2dShape check_depthwise(const Tensor& input, const Tensor& weight, const Tensor& bias, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation) {
  const int64_t groups = input.dim() == 4 ? input.size(1) : 1;
  const Conv2dShape shape = check_conv2d(input, weight, bias, stride, padding, dilation, groups);
  for (int d = 0; d < 2; ++d) {
    const int64_t size = d == 0 ? shape.height : shape.width;
    TORCH_CHECK(size + 2 * shape.padding[d] <= kLargestOnGpu && shape.stride[d] <= kLargestOnGpu &&
                    shape.channels <= kLargestOnGpu && shape.filters <= kLargestOnGpu,
                "depthwise conv2d: channels, strides and padded sizes beyond ", kLargestOnGpu,
                " have no kernel, got input ", input.sizes(), ", stride ", stride, " and padding ", padding);
  }
  return shape;
}

bool is_depthwise_on_gpu(const Tensor& input, const Tensor& weight, const c10::SymInt& groups) {
  constexpr c10::DispatchKeySet kTraced({c10::DispatchKey::Python, c10::DispatchKey::Functionalize});
  if (!input.is_cuda() || input.key_set().has_any(kTraced) || input.dim() != 4 || weight.dim() != 4) return false;
  const auto count = groups.maybe_as_int();
  if (!count.has_value() || *count < 2 || input.size(1) != *count || weight.size(1) != 1) return false;
  // batch_norm is in the same library, which is loaded before a device has its table.
  if (!gpu_serves(Op::kBatchNorm, input)) return false;
  static const bool is_there = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("tilewright::depthwise_forward", "")
                                   .hasKernelForDispatchKey(c10::DispatchKey::CUDA);
  return is_there;
}

std::tuple<Tensor, Tensor> depthwise_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                             c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                             c10::SymIntArrayRef dilation, c10::string_view activation, bool saves,
                                             const OptionalTensor& residual) {
  static const auto op = find_op<decltype(depthwise_forward)>("tilewright::depthwise_forward");
  return op.call(input, weight, bias, stride, padding, dilation, activation, saves, residual);
}

std::tuple<Tensor, Tensor, Tensor> depthwise_backward(const Tensor& grad_output, const Tensor& input,
                                                      const Tensor& weight, c10::SymIntArrayRef stride,
                                                      c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                                      std::array<bool, 3> output_mask) {
  static const auto op = find_op<decltype(depthwise_backward)>("tilewright::depthwise_backward");
  return op.call(grad_output, input, weight, stride, padding, dilation, output_mask);
}

}  // namespace tilewright

TORCH_LIBRARY_FRAGMENT(tilewright, m) {
  m.def(
      "depthwise_forward(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, str activation, bool saves, Tensor? residual) -> (Tensor output, Tensor saved)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "depthwise_backward(Tensor grad_output, Tensor input, Tensor weight, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, bool[3] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
      {at::Tag::pt2_compliant_tag});
}

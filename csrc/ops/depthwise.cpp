#include "ops/depthwise.h"

namespace tilewright {

Conv2dShape check_depthwise(const Tensor& input, const Tensor& weight, const Tensor& bias, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation) {
  const int64_t groups = input.dim() == 4 ? input.size(1) : 1;
  const Conv2dShape shape = check_conv2d(input, weight, bias, stride, padding, dilation, groups);
  // Kernels hold the place of a pixel, padding and the kernel's reach included, in 32 bits.
  constexpr int64_t kLargest = int64_t{1} << 28;
  for (int d = 0; d < 2; ++d) {
    const int64_t size = d == 0 ? shape.height : shape.width;
    TORCH_CHECK(size + 2 * shape.padding[d] <= kLargest && shape.stride[d] <= kLargest && shape.channels <= kLargest &&
                    shape.filters <= kLargest,
                "depthwise conv2d: channels, strides and padded sizes beyond ", kLargest, " have no kernel, got input ",
                input.sizes(), ", stride ", stride, " and padding ", padding);
  }
  return shape;
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

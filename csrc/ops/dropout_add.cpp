#include "ops/dropout_add.h"

namespace tilewright {

void check_dropout_add_forward(const Tensor& input, const Tensor& residual, const Tensor& bias) {
  TORCH_CHECK(residual.sizes().equals(input.sizes()) && residual.scalar_type() == input.scalar_type(),
              "dropout_add_forward: residual must have input's shape ", input.sizes(), " and dtype ",
              input.scalar_type(), ", got ", residual.sizes(), " and ", residual.scalar_type());
  TORCH_CHECK(!bias.defined() || (bias.dim() == 1 && input.dim() >= 1 && bias.size(0) == input.size(-1)),
              "dropout_add_forward: bias must have the size of input's last dimension, input is ", input.sizes(),
              ", got ", bias.sizes());
}

DropoutAddSize check_dropout_add_backward(const Tensor& grad_output) {
  TORCH_CHECK(grad_output.dim() >= 1, "dropout_add_backward: grad_output must have a last dimension, got a scalar");
  const int64_t cols = grad_output.size(-1);
  return {cols == 0 ? 0 : grad_output.numel() / cols, cols};
}

Tensor dropout_add_forward(const Tensor& input, const Tensor& residual, const OptionalTensor& bias, const Tensor& seed,
                           double p) {
  static const auto op = find_op<decltype(dropout_add_forward)>("tilewright::dropout_add_forward");
  return op.call(input, residual, bias, seed, p);
}

std::tuple<Tensor, Tensor> dropout_add_backward(const Tensor& grad_output, const Tensor& seed, double p,
                                                std::array<bool, 2> output_mask) {
  static const auto op = find_op<decltype(dropout_add_backward)>("tilewright::dropout_add_backward");
  return op.call(grad_output, seed, p, output_mask);
}

}  // namespace tilewright

TORCH_LIBRARY_FRAGMENT(tilewright, m) {
  m.def("dropout_add(Tensor input, Tensor residual, float p, bool train, Tensor? bias=None) -> Tensor",
        {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def("dropout_add_forward(Tensor input, Tensor residual, Tensor? bias, Tensor seed, float p) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "dropout_add_backward(Tensor grad_output, Tensor seed, float p, bool[2] output_mask) -> (Tensor grad_input, "
      "Tensor grad_bias)",
      {at::Tag::pt2_compliant_tag});
}

#include "ops/dropout_add_layer_norm.h"

namespace tilewright {

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm_forward(
    const Tensor& input, const Tensor& residual, c10::SymIntArrayRef normalized_shape, const OptionalTensor& weight,
    const OptionalTensor& bias, double eps, const OptionalTensor& seed, double p, bool keep_sum) {
  static const auto op =
      find_op<decltype(dropout_add_layer_norm_forward)>("tilewright::dropout_add_layer_norm_forward");
  return op.call(input, residual, normalized_shape, weight, bias, eps, seed, p, keep_sum);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm_backward(
    const Tensor& grad_output, const OptionalTensor& grad_sum, const Tensor& sum, c10::SymIntArrayRef normalized_shape,
    const Tensor& mean, const Tensor& rstd, const OptionalTensor& weight, const OptionalTensor& seed, double p,
    std::array<bool, 4> output_mask) {
  static const auto op =
      find_op<decltype(dropout_add_layer_norm_backward)>("tilewright::dropout_add_layer_norm_backward");
  return op.call(grad_output, grad_sum, sum, normalized_shape, mean, rstd, weight, seed, p, output_mask);
}

}  // namespace tilewright

TORCH_LIBRARY_FRAGMENT(tilewright, m) {
  m.def(
      "dropout_add_layer_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, "
      "float eps, float p, bool train) -> Tensor",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def(
      "dropout_add_layer_norm_prenorm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, "
      "Tensor? bias, float eps, float p, bool train) -> (Tensor output, Tensor sum)",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def(
      "dropout_add_layer_norm_forward(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, "
      "Tensor? bias, float eps, Tensor? seed, float p, bool keep_sum) -> (Tensor output, Tensor sum, Tensor mean, "
      "Tensor rstd)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "dropout_add_layer_norm_backward(Tensor grad_output, Tensor? grad_sum, Tensor sum, SymInt[] normalized_shape, "
      "Tensor mean, Tensor rstd, Tensor? weight, Tensor? seed, float p, bool[4] output_mask) -> (Tensor grad_input, "
      "Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)",
      {at::Tag::pt2_compliant_tag});
}

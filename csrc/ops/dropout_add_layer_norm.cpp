#include "ops/dropout_add_layer_norm.h"

#include "ops/tensors.h"

namespace tilewright {

LayerNormSize check_dropout_add_layer_norm_forward(const Tensor& input, const Tensor& residual,
                                                   at::IntArrayRef normalized_shape, const Tensor& weight,
                                                   const Tensor& bias) {
  const LayerNormSize size = check_layer_norm(input, normalized_shape, weight, bias);
  TORCH_CHECK(residual.sizes().equals(input.sizes()) && residual.scalar_type() == input.scalar_type(),
              "dropout_add_layer_norm: residual must have input's shape ", input.sizes(), " and dtype ",
              input.scalar_type(), ", got ", residual.sizes(), " and ", residual.scalar_type());
  return size;
}

LayerNormSize check_dropout_add_layer_norm_backward(const Tensor& grad_output, const Tensor& grad_sum,
                                                    const Tensor& sum, at::IntArrayRef normalized_shape,
                                                    const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                                                    const Tensor& seed, bool wants_grad_input) {
  const LayerNormSize size = check_layer_norm(sum, normalized_shape, weight, Tensor());
  const auto dtype = sum.scalar_type(), sum_dtype = accumulation_dtype(dtype);
  const auto fits = [&](const Tensor& t) { return t.sizes().equals(sum.sizes()) && t.scalar_type() == dtype; };
  TORCH_CHECK(fits(grad_output) && (!grad_sum.defined() || fits(grad_sum)),
              "dropout_add_layer_norm_backward: gradients must have sum's shape ", sum.sizes(), " and dtype ", dtype);
  TORCH_CHECK(mean.numel() == size.rows && rstd.numel() == size.rows && mean.scalar_type() == sum_dtype &&
                  rstd.scalar_type() == sum_dtype,
              "dropout_add_layer_norm_backward: mean and rstd must hold one ", sum_dtype, " for each of ", size.rows,
              " rows, got ", mean.sizes(), " and ", rstd.sizes());
  TORCH_CHECK(seed.defined() || !wants_grad_input,
              "dropout_add_layer_norm_backward: without a seed grad_input is grad_residual");
  return size;
}

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

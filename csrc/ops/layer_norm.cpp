#include "ops/layer_norm.h"

#include "ops/tensors.h"

namespace tilewright {

namespace {

// Native's rule: parameters have the input's dtype, or float32 beside a 16-bit input.
void check_parameter_dtype(const char* name, const Tensor& parameter, at::ScalarType dtype) {
  if (!parameter.defined() || parameter.scalar_type() == dtype) return;
  const bool half = dtype == at::kBFloat16 || dtype == at::kHalf;
  TORCH_CHECK(half && parameter.scalar_type() == at::kFloat, "layer_norm: mixed dtype: ", name, " must be ", dtype,
              " as input is", half ? " or float32" : "", ", got ", parameter.scalar_type());
}

}  // namespace

LayerNormSize check_layer_norm(const Tensor& input, at::IntArrayRef normalized_shape, const Tensor& weight,
                               const Tensor& bias) {
  const auto rank = static_cast<int64_t>(normalized_shape.size());
  TORCH_CHECK(rank >= 1, "layer_norm: normalized_shape must have at least one dimension, got ", normalized_shape);
  const bool fits = input.dim() >= rank && input.sizes().slice(input.dim() - rank).equals(normalized_shape);
  TORCH_CHECK(fits, "layer_norm: input must end in normalized_shape ", normalized_shape, ", got input of shape ",
              input.sizes());
  TORCH_CHECK(!weight.defined() || weight.sizes().equals(normalized_shape), "layer_norm: weight must have shape ",
              normalized_shape, " (normalized_shape), got ", weight.sizes());
  TORCH_CHECK(!bias.defined() || bias.sizes().equals(normalized_shape), "layer_norm: bias must have shape ",
              normalized_shape, " (normalized_shape), got ", bias.sizes());
  check_parameter_dtype("weight", weight, input.scalar_type());
  check_parameter_dtype("bias", bias, input.scalar_type());
  const int64_t cols = c10::multiply_integers(normalized_shape);
  const int64_t rows = c10::multiply_integers(input.sizes().slice(0, input.dim() - rank));
  return {rows, cols};
}

LayerNormSize check_layer_norm_backward(const Tensor& grad_output, const Tensor& input,
                                        at::IntArrayRef normalized_shape, const Tensor& mean, const Tensor& rstd,
                                        const Tensor& weight) {
  const LayerNormSize size = check_layer_norm(input, normalized_shape, weight, Tensor());
  const auto dtype = input.scalar_type(), sum_dtype = accumulation_dtype(dtype);
  TORCH_CHECK(grad_output.sizes().equals(input.sizes()) && grad_output.scalar_type() == dtype,
              "layer_norm_backward: grad_output must have input's shape ", input.sizes(), " and dtype ", dtype,
              ", got ", grad_output.sizes(), " and ", grad_output.scalar_type());
  TORCH_CHECK(mean.numel() == size.rows && rstd.numel() == size.rows && mean.scalar_type() == sum_dtype &&
                  rstd.scalar_type() == sum_dtype,
              "layer_norm_backward: mean and rstd must hold one ", sum_dtype, " for each of ", size.rows, " rows, got ",
              mean.sizes(), " and ", rstd.sizes());
  return size;
}

at::DimVector layer_norm_stat_shape(at::IntArrayRef input, at::IntArrayRef normalized_shape) {
  at::DimVector shape(input);
  for (size_t i = shape.size() - normalized_shape.size(); i < shape.size(); ++i) shape[i] = 1;
  return shape;
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(const Tensor& input, c10::SymIntArrayRef normalized_shape,
                                                      const OptionalTensor& weight, const OptionalTensor& bias,
                                                      double eps) {
  static const auto op = find_op<decltype(layer_norm_forward)>("tilewright::layer_norm_forward");
  return op.call(input, normalized_shape, weight, bias, eps);
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& grad_output, const Tensor& input,
                                                       c10::SymIntArrayRef normalized_shape, const Tensor& mean,
                                                       const Tensor& rstd, const OptionalTensor& weight,
                                                       std::array<bool, 3> output_mask) {
  static const auto op = find_op<decltype(layer_norm_backward)>("tilewright::layer_norm_backward");
  return op.call(grad_output, input, normalized_shape, mean, rstd, weight, output_mask);
}

}  // namespace tilewright

TORCH_LIBRARY_FRAGMENT(tilewright, m) {
  m.def(
      "layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float eps=1e-05) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "layer_norm_forward(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps) -> "
      "(Tensor output, Tensor mean, Tensor rstd)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "layer_norm_backward(Tensor grad_output, Tensor input, SymInt[] normalized_shape, Tensor mean, Tensor rstd, "
      "Tensor? weight, bool[3] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
      {at::Tag::pt2_compliant_tag});
}

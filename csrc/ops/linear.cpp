#include "ops/linear.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/hardtanh_backward.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/threshold_backward.h>

namespace tilewright {

Activation activation_from_name(c10::string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "relu6") return Activation::kRelu6;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "silu") return Activation::kSilu;
  TORCH_CHECK_VALUE(false, "activation must be one of none, relu, relu6, gelu, gelu_tanh, silu, got '", name, "'");
}

Tensor native_activation(const Tensor& input, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return at::relu(input);
    case Activation::kRelu6:
      return at::hardtanh(input, 0, 6);
    case Activation::kGelu:
      return at::gelu(input);
    case Activation::kGeluTanh:
      return at::gelu(input, "tanh");
    case Activation::kSilu:
      return at::silu(input);
    default:
      return input;
  }
}

Tensor native_gradient_by_output(const Tensor& grad_output, const Tensor& output, Activation activation) {
  return activation == Activation::kRelu6 ? at::hardtanh_backward(grad_output, output, 0, 6)
                                          : at::threshold_backward(grad_output, output, 0);
}

void check_linear(const char* op, const Tensor& input, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(weight.dim() == 2 && input.dim() >= 1 && input.size(-1) == weight.size(1), op,
              ": input must be [*, in_features] and weight [out_features, in_features], got input of shape ",
              input.sizes(), " and weight of shape ", weight.sizes());
  TORCH_CHECK(input.scalar_type() == weight.scalar_type(), op, ": input and weight must have the same dtype, got ",
              input.scalar_type(), " and ", weight.scalar_type());
  if (!bias.defined()) return;
  TORCH_CHECK(bias.dim() == 1 && bias.size(0) == weight.size(0), op, ": bias must have shape [", weight.size(0),
              "] (out_features), got ", bias.sizes());
  TORCH_CHECK(bias.scalar_type() == input.scalar_type(), op, ": input and bias must have the same dtype, got ",
              input.scalar_type(), " and ", bias.scalar_type());
}

void check_activation_backward(const Tensor& grad_output, const Tensor& saved) {
  TORCH_CHECK(grad_output.sizes().equals(saved.sizes()) && grad_output.scalar_type() == saved.scalar_type(),
              "activation_backward: saved must have grad_output's shape ", grad_output.sizes(), " and dtype ",
              grad_output.scalar_type(), ", got ", saved.sizes(), " and ", saved.scalar_type());
}

std::tuple<Tensor, Tensor> linear_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                          c10::string_view activation, bool saves) {
  static const auto op = find_op<decltype(linear_forward)>("tilewright::linear_forward");
  return op.call(input, weight, bias, activation, saves);
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad_output, const OptionalTensor& input,
                                                   const OptionalTensor& weight, std::array<bool, 3> output_mask) {
  static const auto op = find_op<decltype(linear_backward)>("tilewright::linear_backward");
  return op.call(grad_output, input, weight, output_mask);
}

Tensor activation_backward(const Tensor& grad_output, const Tensor& saved, c10::string_view activation) {
  static const auto op = find_op<decltype(activation_backward)>("tilewright::activation_backward");
  return op.call(grad_output, saved, activation);
}

}  // namespace tilewright

TORCH_LIBRARY_FRAGMENT(tilewright, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def("linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor", tags);
  m.def("linear_act(Tensor input, Tensor weight, Tensor? bias=None, *, str activation=\"gelu\") -> Tensor", tags);
  m.def(
      "linear_forward(Tensor input, Tensor weight, Tensor? bias, str activation, bool saves) -> "
      "(Tensor output, Tensor saved)",
      tags);
  m.def(
      "linear_backward(Tensor grad_output, Tensor? input, Tensor? weight, bool[3] output_mask) -> "
      "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
      tags);
  m.def("activation_backward(Tensor grad_output, Tensor saved, str activation) -> Tensor", tags);
}

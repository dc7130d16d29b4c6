// linear, linear_act: act(input weight^T + bias), with input [*, K], weight [N, K], bias [N].
#pragma once
#include "cpu/kernels/activation_args.h"
#include "ops/library.h"

namespace tilewright {

// Raises ValueError for a name that is none of none, relu, relu6, gelu, gelu_tanh, silu.
Activation activation_from_name(c10::string_view name);

// The aten op of that name.
Tensor native_activation(const Tensor& input, Activation activation);

// The aten op of the gradient of relu or relu6, which can be differentiated again.
Tensor native_gradient_by_output(const Tensor& grad_output, const Tensor& output, Activation activation);

// Raises what native raises for arguments that do not fit together.
void check_linear(const char* op, const Tensor& input, const Tensor& weight, const Tensor& bias);

void check_activation_backward(const Tensor& grad_output, const Tensor& saved);

inline bool gradient_reads_input(Activation activation) {
  return activation != Activation::kNone && !gradient_reads_output(activation);
}

// (output, saved): saved is what the gradient of the activation reads, undefined unless `saves` and the activation
// needs it (for relu, relu6 and none it is the output).
std::tuple<Tensor, Tensor> linear_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                          c10::string_view activation, bool saves);

// Either of input and weight may be undefined where output_mask does not need it.
std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad_output, const OptionalTensor& input,
                                                   const OptionalTensor& weight, std::array<bool, 3> output_mask);

// grad_output * act'(saved).
Tensor activation_backward(const Tensor& grad_output, const Tensor& saved, c10::string_view activation);

}  // namespace tilewright

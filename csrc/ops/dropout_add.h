// dropout_add: y = residual + dropout(input + bias), in one pass.
//
// input and residual have one shape and dtype here; bias, if any, is [last dimension]. The public op leaves everything
// else (broadcasting, mixed dtypes, p of 0 or 1, evaluation) to the separate ops.
#pragma once
#include "ops/library.h"

namespace tilewright {

// Raises for arguments of the raw ops that do not fit together.
void check_dropout_add_forward(const Tensor& input, const Tensor& residual, const Tensor& bias);

struct DropoutAddSize {
  int64_t rows;
  int64_t cols;
};
DropoutAddSize check_dropout_add_backward(const Tensor& grad_output);

Tensor dropout_add_forward(const Tensor& input, const Tensor& residual, const OptionalTensor& bias, const Tensor& seed,
                           double p);

// output_mask: grad_input, grad_bias. The gradient of residual is grad_output.
std::tuple<Tensor, Tensor> dropout_add_backward(const Tensor& grad_output, const Tensor& seed, double p,
                                                std::array<bool, 2> output_mask);

}  // namespace tilewright

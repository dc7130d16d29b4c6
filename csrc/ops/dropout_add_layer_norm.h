// dropout_add_layer_norm: sum = residual + dropout(input), output = layer_norm(sum), in one pass over the rows.
//
// input and residual have one shape and dtype here; the public ops leave everything else to the separate ops. Without a
// seed nothing is dropped: the fused residual add and layer norm of evaluation.
#pragma once
#include "ops/layer_norm.h"

namespace tilewright {

// Raise for arguments of the raw ops that do not fit together.
LayerNormSize check_dropout_add_layer_norm_forward(const Tensor& input, const Tensor& residual,
                                                   at::IntArrayRef normalized_shape, const Tensor& weight,
                                                   const Tensor& bias);
LayerNormSize check_dropout_add_layer_norm_backward(const Tensor& grad_output, const Tensor& grad_sum,
                                                    const Tensor& sum, at::IntArrayRef normalized_shape,
                                                    const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                                                    const Tensor& seed, bool wants_grad_input);

// Returns output, sum, mean, rstd. sum is empty ([0]) unless keep_sum.
std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm_forward(
    const Tensor& input, const Tensor& residual, c10::SymIntArrayRef normalized_shape, const OptionalTensor& weight,
    const OptionalTensor& bias, double eps, const OptionalTensor& seed, double p, bool keep_sum);

// output_mask: grad_input, grad_residual, grad_weight, grad_bias. Without a seed grad_input is grad_residual and must
// not be asked for.
std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm_backward(
    const Tensor& grad_output, const OptionalTensor& grad_sum, const Tensor& sum, c10::SymIntArrayRef normalized_shape,
    const Tensor& mean, const Tensor& rstd, const OptionalTensor& weight, const OptionalTensor& seed, double p,
    std::array<bool, 4> output_mask);

}  // namespace tilewright

// layer_norm: y = (x - mean) * rstd * weight + bias over the last dimensions of x, with rstd = 1 / sqrt(var + eps).
//
// x [*, normalized_shape] is seen as [rows, cols]; mean and rstd are [rows], in the accumulation type.
#pragma once
#include <ATen/core/DimVector.h>

#include "ops/library.h"

namespace tilewright {

struct LayerNormSize {
  int64_t rows;
  int64_t cols;
};

// Raises what native raises for arguments that do not fit together.
LayerNormSize check_layer_norm(const Tensor& input, at::IntArrayRef normalized_shape, const Tensor& weight,
                               const Tensor& bias);

LayerNormSize check_layer_norm_backward(const Tensor& grad_output, const Tensor& input,
                                        at::IntArrayRef normalized_shape, const Tensor& mean, const Tensor& rstd,
                                        const Tensor& weight);

// The shape of mean and rstd: input's, with 1 where it was normalised.
at::DimVector layer_norm_stat_shape(at::IntArrayRef input, at::IntArrayRef normalized_shape);

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(const Tensor& input, c10::SymIntArrayRef normalized_shape,
                                                      const OptionalTensor& weight, const OptionalTensor& bias,
                                                      double eps);

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& grad_output, const Tensor& input,
                                                       c10::SymIntArrayRef normalized_shape, const Tensor& mean,
                                                       const Tensor& rstd, const OptionalTensor& weight,
                                                       std::array<bool, 3> output_mask);

}  // namespace tilewright

// batch_norm: y = (x - mean) * rstd * weight + bias per channel, rstd = 1 / sqrt(var + eps), over all other dimensions
// of x [N, C, ...]. In training mean and var are the batch's (var biased), else they are given.
//
// batch_norm_forward adds a residual and applies an activation where asked, and returns mean and var as used, [C] in
// the accumulation type, and where `saves` what the gradient of the activation reads: of gelu and silu what they were
// applied to; of relu and relu6 on the CPU a bit for each element, does its gradient pass (an eighth of a byte, where
// the output would be read twice); undefined else, as on CUDA, where their gradients read the output. The running
// statistics are updated by an op of its own, so that every other op here is pure.
#pragma once
#include "ops/library.h"

namespace tilewright {

// Raises what native raises for arguments that do not fit together. Sizes may be symbolic.
void check_batch_norm(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& mean, const OptionalTensor& var, bool training);

// Of the raw ops, for kernels.
void check_batch_norm_residual(const Tensor& residual, const Tensor& input);
void check_batch_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& var,
                               const Tensor& activated, const std::array<bool, 4>& output_mask);
void check_batch_norm_update_stats(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean,
                                   const Tensor& var);

// The layout of the result. Dimensions of size 1 may make a tensor contiguous in several formats; native prefers the
// first that fits.
at::MemoryFormat batch_norm_format(const Tensor& input);

// What the kernels write dx in: native's gradient prefers the format that strides suggest, where input fits that too.
// Where it does not (a size of 1 with an odd stride), dx is brought into that format afterwards.
at::MemoryFormat batch_norm_gradient_format(const Tensor& input);

// Rows of channels (see cpu/kernels/batch_norm_args.h), or planes? count: values per channel.
inline bool batch_norm_is_rows(const Tensor& input, at::MemoryFormat format, const c10::SymInt& count) {
  return input.sym_size(1) > 1 && (format != at::MemoryFormat::Contiguous || count == input.sym_size(0));
}

// Where a relu or relu6 lets the gradient pass, like input, from the bits that the CPU's forward saved.
Tensor batch_norm_passing_mask(const Tensor& bits, const Tensor& input);

// mean and var: both given (evaluation), or neither: the batch's statistics. residual: like input.
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_forward(const Tensor& input, const OptionalTensor& weight,
                                                              const OptionalTensor& bias, const OptionalTensor& mean,
                                                              const OptionalTensor& var, double eps,
                                                              const OptionalTensor& residual,
                                                              c10::string_view activation, bool saves);

// running = (1 - momentum) * running + momentum * batch, with the unbiased variance of count values; nothing for count
// 0.
void batch_norm_update_stats(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean,
                             const Tensor& var, c10::SymInt count, double momentum);

// activated: where forward applied relu or relu6, the bits that it saved; on CUDA the output, of relu only. training:
// mean and var were computed from input. output_mask: gradients of input, weight, bias, residual; the last only where
// activated is given (elsewhere it is grad_output itself).
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& grad_output, const Tensor& input,
                                                               const Tensor& mean, const Tensor& var,
                                                               const OptionalTensor& weight,
                                                               const OptionalTensor& activated, double eps,
                                                               bool training, std::array<bool, 4> output_mask);

}  // namespace tilewright

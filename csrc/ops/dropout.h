// dropout: y = x * keep / (1 - p), where keep is 0 with probability p. common/philox.h says which elements are kept.
//
// A call draws one 64-bit seed from torch's default generator (dropout_seed). All other ops take the seed as a Tensor
// (int64, [1]) and are pure, so that backward, recomputation and a compiled graph meet the same mask; it depends on the
// seed, p and the logical index of an element only.
#pragma once
#include "common/philox.h"
#include "common/types.h"
#include "ops/library.h"

namespace tilewright {

// Raises what native raises for p outside [0, 1] (NaN too).
void check_dropout_probability(double p);

// For the raw ops: p, and a seed as dropout_seed makes it, on the device of the op's tensors.
void check_dropout_seed(const char* op, const Tensor& seed, c10::Device device, double p);
void check_dropout_keeping(const Tensor& input);
void check_keep_bits(const Tensor& keep_bits, const Tensor& grad_output);

// True where dropout draws a mask: p = 0 and evaluation keep everything, p = 1 drops everything.
inline bool draws_mask(double p, bool train) { return train && p > 0 && p < 1; }

Tensor dropout_seed(const Tensor& input);
Tensor dropout_forward(const Tensor& input, const Tensor& seed, double p);
void dropout_forward_(Tensor& input, const Tensor& seed, double p);

// Contiguous input only: (output, keep_bits). keep_bits is uint8 [keep_bits_size(numel)]; bit i % 8 of byte i / 8 says
// whether element i was kept. The spare bytes behind are zero: kernels read bits by words.
std::tuple<Tensor, Tensor> dropout_forward_keeping(const Tensor& input, const Tensor& seed, double p);
inline int64_t keep_bits_size(int64_t numel) { return (numel + 7) / 8 + kBitsSpare; }

// keep_bits spare the Philox rounds where grad_output is contiguous; elsewhere the mask is made again from the seed.
Tensor dropout_backward(const Tensor& grad_output, const Tensor& seed, double p, const OptionalTensor& keep_bits = {});

// bool, contiguous, of like's shape: true where an element is kept.
Tensor dropout_mask(const Tensor& like, const Tensor& seed, double p);

// The gradient by aten's differentiable ops, for callers that ask for gradients of gradients.
Tensor differentiable_dropout_backward(const Tensor& grad_output, const Tensor& seed, double p);

}  // namespace tilewright

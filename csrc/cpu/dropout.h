// Runs the elementwise dropout kernel over tensors of any one dense layout; dropout and dropout_add share it.
#pragma once
#include "ops/library.h"

namespace tilewright {

// output = residual + (input + bias) * keep * scale. input, residual (or undefined) and output are dense with the same
// strides; output may be input. bias [last dimension] (or undefined) is in the accumulation type and asks for
// contiguous tensors. bits, for contiguous tensors: where the keep bits are written, or read instead of made anew.
struct KeepBits {
  uint8_t* write = nullptr;
  const uint8_t* read = nullptr;
};
void run_dropout(const Tensor& input, const Tensor& residual, const Tensor& bias, const Tensor& output,
                 const Tensor& seed, double p, const char* op, KeepBits bits = {});

// The result that a pointwise op of native makes for a tensor and its empty_like: dense, in the tensor's own order.
Tensor empty_pointwise(const Tensor& tensor);

// The tensor itself where its elements lie in memory as output's do, else a copy that does. output is dense.
Tensor ordered_like(const Tensor& tensor, const Tensor& output);

}  // namespace tilewright

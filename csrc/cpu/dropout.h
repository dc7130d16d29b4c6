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

}  // namespace tilewright

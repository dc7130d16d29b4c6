// Runs the elementwise dropout kernel that fits a tensor's memory; dropout and dropout_add share it.
#pragma once
#include "ops/library.h"

namespace tilewright::gpu {

// For contiguous tensors: where the keep bits are written, or read instead of made anew.
struct KeepBits {
  uint8_t* write = nullptr;
  const uint8_t* read = nullptr;
};

// output = residual + (input + bias) * keep * scale. input, residual (or undefined) and output are dense with the same
// strides; output may be input. bias [last dimension] (or undefined) asks for contiguous tensors.
void run_dropout(const Tensor& input, const Tensor& residual, const Tensor& bias, const Tensor& output,
                 const Tensor& seed, double p, const char* op, KeepBits bits = {});

}  // namespace tilewright::gpu

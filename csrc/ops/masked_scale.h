// masked_scale: y = input * mask * scale for a given keep-mask, as Python's expression broadcasts and promotes it.
#pragma once
#include "ops/library.h"

namespace tilewright {

// Raises unless mask is bool of input's shape.
void check_masked_scale(const Tensor& input, const Tensor& mask);

// For a bool mask of input's shape. Linear in input: its own gradient.
Tensor masked_scale_forward(const Tensor& input, const Tensor& mask, double scale);

}  // namespace tilewright

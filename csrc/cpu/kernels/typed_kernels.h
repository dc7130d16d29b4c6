// The struct of function pointers that every ISA fills: one member per kernel family, one struct per element type.
// It sees no std header, because the ISA units include it.
#pragma once
#include "common/types.h"
#include "cpu/kernels/conv2d_args.h"
#include "cpu/kernels/layer_norm_args.h"

// Each family has kernels/<family>.h with a function fill_<family>(TypedKernels<T>&).
#define TILEWRIGHT_FAMILIES(X) X(layer_norm) X(conv2d) X(depthwise)

namespace tilewright {

template <typename T>
struct TypedKernels {
  LayerNormKernels<T> layer_norm;
  Conv2dKernels<T> conv2d;
  DepthwiseKernels<T> depthwise;
};

struct KernelTable {
  const char* isa;
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  TypedKernels<BF16> bf16;
  TypedKernels<F16> f16;
};

}  // namespace tilewright

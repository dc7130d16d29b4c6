// layer_norm on the GPU, over rows of a contiguous [rows, cols] matrix:
//   y = (x - mean) * rstd * weight + bias,   rstd = 1 / sqrt(var + eps)
// The formulas of the gradients are in csrc/autograd/layer_norm.cpp.
#pragma once
#include "common/types.h"
#include "cuda/launch.h"

namespace tilewright::gpu {

template <typename T>
struct LayerNormForwardArgs {
  const T* x;
  const void *weight, *bias;    // [cols] or null
  bool wide_weight, wide_bias;  // in Acc<T>, else in T
  T* y;
  Acc<T>*mean, *rstd;  // [rows]
  int64_t rows, cols;
  Acc<T> eps;
};

template <typename T>
struct LayerNormBackwardArgs {
  const T *dy, *x;
  const void* weight;
  bool wide_weight;
  const Acc<T>*mean, *rstd;
  T* dx;                  // null: not wanted
  void *dweight, *dbias;  // [cols] in the weight's dtype, or null
  bool wide_gradients;
  Acc<T>* partials;  // [2, layer_norm_partial_rows(rows, cols), cols], null where neither dweight nor dbias is wanted
  int64_t rows, cols;
};

// How many partial rows of dweight and dbias the backward writes, or has room for: a function of the shape alone, so
// that the order of summation is, too.
int64_t layer_norm_partial_rows(int64_t rows, int64_t cols);

template <typename T>
Status layer_norm_forward(const LayerNormForwardArgs<T>& args, const Launch& launch);
template <typename T>
Status layer_norm_backward(const LayerNormBackwardArgs<T>& args, const Launch& launch);

// Stages of the backward, which dropout_add_layer_norm shares: the parameters' gradients from the first `parts` partial
// rows, [2, parts, cols], and both by launches of their own.
template <typename T>
Status layer_norm_add_partials(const LayerNormBackwardArgs<T>& args, int64_t parts, const Launch& launch);
template <typename T>
Status layer_norm_column_sums(const LayerNormBackwardArgs<T>& args, const Launch& launch);

}  // namespace tilewright::gpu

// batch_norm on the GPU. A tensor is seen in one of two layouts:
//   planes  [images, channels, size]   a channel is `images` runs of `size` elements (contiguous NCHW, NCDHW, NCL)
//   rows    [images, channels]         images = N * spatial, size = 1 (channels_last, or no spatial dimensions)
// The formulas are in csrc/ops/batch_norm.h and csrc/autograd/batch_norm.cpp.
#pragma once
#include "common/types.h"
#include "cpu/kernels/activation_args.h"
#include "cuda/launch.h"

namespace tilewright::gpu {

struct BatchNormShape {
  int64_t images, channels, size;
  bool rows;
};

template <typename T>
struct BatchNormForwardArgs {
  const T *x, *residual;  // residual: like x, or null
  T *y, *pre;             // pre: like x, what the activation is applied to; or null
  const void *weight, *bias, *given_mean, *given_var;  // [channels] or null; without given ones, the batch's are used
  bool wide_parameters;                                // these four in Acc<T>, else in T
  Acc<T>*mean, *var;                                   // [channels], as used
  double* partials;  // [2, batch_norm_parts(shape), channels]; null where a channel is one part, or mean is given
  Activation activation;
  Acc<T> eps;
  BatchNormShape shape;
};

template <typename T>
struct BatchNormBackwardArgs {
  const T *dy, *x, *y;  // y: forward's output where it applied relu, or null
  const void* weight;
  bool wide_weight;
  const Acc<T>*mean, *var;
  T *dx, *dresidual;      // null: not wanted
  void *dweight, *dbias;  // [channels], null: not wanted
  bool wide_gradients;    // those two in Acc<T>, else in T
  Acc<T>* partials;       // [2, batch_norm_parts(shape), channels]; null where a channel is one part
  Acc<T>* factors;        // [2, channels]: mean(g) and rstd^2 * mean(g * (x - mean)); null like partials
  bool training;
  Acc<T> eps;
  BatchNormShape shape;
};

// In how many parts a channel is summed: a function of the shape alone, so that the order of summation is, too.
template <typename T>
int64_t batch_norm_parts(const BatchNormShape& shape);

template <typename T>
Status batch_norm_forward(const BatchNormForwardArgs<T>& args, const Launch& launch);
template <typename T>
Status batch_norm_backward(const BatchNormBackwardArgs<T>& args, const Launch& launch);

// running = (1 - momentum) * running + momentum * batch, where the batch's variance is first multiplied by `unbiased`.
template <typename T>
struct BatchNormUpdateArgs {
  T *running_mean, *running_var;
  int64_t mean_stride, var_stride;
  const Acc<T>*mean, *var;
  int64_t channels;
  double unbiased, momentum;
};

template <typename T>
Status batch_norm_update_stats(const BatchNormUpdateArgs<T>& args, const Launch& launch);

// The launches between the passes: partial results of all parts to one per channel.
template <typename T>
Status batch_norm_merge_statistics(const BatchNormForwardArgs<T>& args, const Launch& launch);
template <typename T>
Status batch_norm_merge_sums(const BatchNormBackwardArgs<T>& args, const Launch& launch);

}  // namespace tilewright::gpu

// Depthwise convolution on the GPU: forward, gather of the data gradient, and weight gradient.
//
//   forward   out[n, f, y, x] = act(bias[f] + sum of weight[f, i, j] * in[n, f / m, y * s - p + i * d, ...] + residual)
//   gradient  out[n, c, y, x] = sum over the m filters of c, i, j with s | y + p - i * d of
//                               weight[c * m + q, i, j] * in[n, c * m + q, (y + p - i * d) / s, ...]
// With stride 1 the second is the first with the kernel turned round and padding d * (k - 1) - p.
//
// Images are dense, planes [N, C, H, W] or channels_last [N, H, W, C]. One dimension has at most 2^30 pixels, padding
// and kernel included; the number of elements is not bounded.
#pragma once
#include "common/types.h"
#include "cpu/kernels/activation_args.h"
#include "cuda/launch.h"

namespace tilewright::gpu {

// weight[f, i, j] = data[f * filter + i * row + j * col]; strides may be negative.
template <typename T>
struct DepthwiseWeight {
  const T* data;
  int64_t filter, row, col;
};

template <typename T>
struct DepthwiseImages {
  T* data;
  int channels, height, width;
};

// Pairs are (vertical, horizontal). A padding may be negative.
struct DepthwiseGeometry {
  int kernel[2], stride[2], padding[2], dilation[2];
  bool gathers;  // the formula of the gradient
  bool channels_last;
};

template <typename T>
struct DepthwiseArgs {
  DepthwiseImages<const T> in;
  DepthwiseImages<T> out;
  int64_t images;
  DepthwiseGeometry geometry;
  DepthwiseWeight<T> weight;
  int filters_of_channel;    // forward: of an input channel, gradient: of an output channel
  const T *bias, *residual;  // null: none. residual lies as out does
  T* saved;                  // what the activation is applied to; null: not wanted
  Activation activation;
};

template <typename T>
struct DepthwiseWeightArgs {
  DepthwiseImages<const T> x, dy;
  int64_t images;
  DepthwiseGeometry geometry;  // of the forward
  int filters_of_channel;
  Acc<T>* partials;  // [depthwise_weight_parts, taps + 1, filters]; the last tap is the bias
  T* dweight;        // dweight[f * filter + i * row + j * col], null: not wanted
  int64_t filter, row, col;
  T* dbias;  // [filters], null: not wanted
};

// How many partial sums the weight gradient makes of each weight: a function of the shape alone, so that the order of
// summation is, too.
int64_t depthwise_weight_parts(int64_t pixels, int64_t filters, bool channels_last);

template <typename T>
Status depthwise(const DepthwiseArgs<T>& args, const Launch& launch);
template <typename T>
Status depthwise_weight_gradient(const DepthwiseWeightArgs<T>& args, const Launch& launch);

// The kernels behind the two: for 3x3, 5x5 and 7x7 kernels with stride 1 or 2 in float32 and 16-bit types, by tiles of
// outputs in registers ...
template <typename T>
Status depthwise_last_tiles(const DepthwiseArgs<T>& args, const Launch& launch);
template <typename T>
Status depthwise_plane_tiles(const DepthwiseArgs<T>& args, const Launch& launch);
template <typename T>
Status depthwise_last_cells(const DepthwiseArgs<T>& args, const Launch& launch);
template <typename T>
Status depthwise_plane_cells(const DepthwiseArgs<T>& args, const Launch& launch);
template <typename T>
Status depthwise_last_weights(const DepthwiseWeightArgs<T>& args, int64_t parts, const Launch& launch);
template <typename T>
Status depthwise_plane_weights(const DepthwiseWeightArgs<T>& args, int64_t parts, const Launch& launch);
// ... and for everything.
template <typename T>
Status depthwise_any(const DepthwiseArgs<T>& args, const Launch& launch);
template <typename T>
Status depthwise_any_weights(const DepthwiseWeightArgs<T>& args, int64_t parts, const Launch& launch);

}  // namespace tilewright::gpu

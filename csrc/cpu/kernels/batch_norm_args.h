// What cpu/batch_norm.cpp hands to kernels/batch_norm.h.
//
// A tensor is seen in one of two layouts:
//   planes  [images, channels, size]   a channel is `images` runs of `size` elements (contiguous NCHW, NCDHW, NCL)
//   rows    [images, channels]         images = N * spatial, size = 1 (channels_last, or no spatial dimensions)
// and cut into tasks by its shape alone:
//   planes  task = channel * blocks + block; a block is `block` consecutive elements of the channel
//   rows    task = block * tiles + tile; a block is `block` rows, a tile at most kBatchNormTile channels
// Partial results are kept per (block, channel) and merged in the order of blocks, so no result depends on who ran
// which task. Passes that only map elements go over lines instead, in the order of memory or channel by channel:
//   planes  line = image * channels + channel, of `size` elements;      rows  line = row, of `channels` elements
#pragma once
#include "common/types.h"
#include "cpu/kernels/activation_args.h"

namespace tilewright {

// Channels of one task of the rows layout: its accumulators (three arrays of 256 floats) stay in L1 beside the rows.
constexpr int64_t kBatchNormTile = 256;

struct BatchNormShape {
  int64_t images;
  int64_t channels;
  int64_t size;
  int64_t block;   // elements (planes) or rows (rows) of a block; the last may be shorter
  int64_t blocks;  // per channel (planes) or in all (rows)
  int64_t tiles;   // 1 for planes
  // Where the partial of (channel, block) lies: channel * channel_stride + block * block_stride.
  int64_t channel_stride;
  int64_t block_stride;
  // Bits of elements start a new byte with every line: element i of line l is bit l * line_bits + i.
  int64_t line_bits;
};

// Lines begin, begin + step, ... below end; of each the elements [from, to).
struct BatchNormLines {
  int64_t begin, end, step;
  int64_t from, to;
};

// Per block: the mean, and the sum of squared distances from it.
template <typename T>
struct BatchNormStatsArgs {
  const T* x;
  double* mean;  // [partials]
  double* m2;    // [partials]
  BatchNormShape shape;
};

// y = act((x - mean) * scale + shift + residual)
template <typename T>
struct BatchNormApplyArgs {
  const T* x;
  const T* residual;  // like x, or null: none
  T* y;
  const Acc<T>* mean;   // [channels]
  const Acc<T>* scale;  // [channels] weight * rstd
  const Acc<T>* shift;  // [channels] bias
  T* pre;               // like x: what gelu or silu is applied to; or null: not wanted
  uint8_t* passes;      // relu, relu6: a bit for each element, does a gradient pass; or null: not wanted
  Activation activation;
  bool streams;  // y and pre go past the caches
  BatchNormShape shape;
};

// With g = dy, or where the bits are given (relu, relu6) dy where its bit is set else 0, per block: sum(g) and sum(g *
// (x - mean)).
template <typename T>
struct BatchNormSumsArgs {
  const T* dy;
  const T* x;
  const uint8_t* passes;  // bits of the elements, or null: no relu, no relu6
  const Acc<T>* mean;     // [channels]
  double* sum_g;          // [partials]
  double* sum_gx;         // [partials]
  BatchNormShape shape;
};

// dx = (g - mean_g - (x - mean) * slope) * scale, or g * scale where slope is null (statistics were given); dresidual =
// g
template <typename T>
struct BatchNormGradArgs {
  const T* dy;
  const T* x;
  const uint8_t* passes;  // bits of the elements, or null: no relu, no relu6
  T* dx;                  // like x
  T* dresidual;           // like x, or null: not wanted
  const Acc<T>* mean;     // [channels]
  const Acc<T>* scale;    // [channels] weight * rstd
  const Acc<T>* mean_g;   // [channels]
  const Acc<T>* slope;    // [channels] rstd^2 * mean(g * (x - mean)), or null
  bool streams;           // dx and dresidual go past the caches
  BatchNormShape shape;
};

template <typename T>
struct BatchNormPasses {
  void (*stats)(const BatchNormStatsArgs<T>&, int64_t begin, int64_t end);  // tasks
  void (*sums)(const BatchNormSumsArgs<T>&, int64_t begin, int64_t end);    // tasks
  void (*apply)(const BatchNormApplyArgs<T>&, const BatchNormLines&);
  void (*grad)(const BatchNormGradArgs<T>&, const BatchNormLines&);
};

template <typename T>
struct BatchNormKernels {
  BatchNormPasses<T> planes;
  BatchNormPasses<T> rows;
};

}  // namespace tilewright

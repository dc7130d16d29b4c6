// Batch norm where a channel is runs of contiguous elements: per-channel values are broadcast over vectors.
#pragma once
#include "cpu/kernels/batch_norm_math.h"
#include "cpu/kernels/rows.h"

namespace tilewright {
namespace {

// Calls body(line, offset, length) for each contiguous run that elements [begin, end) of a channel consist of.
template <typename Body>
inline TILEWRIGHT_INLINE void for_each_run(const BatchNormShape& shape, int64_t channel, int64_t begin, int64_t end,
                                           const Body& body) {
  int64_t image = begin / shape.size, within = begin % shape.size;
  while (begin < end) {
    const int64_t length = shape.size - within < end - begin ? shape.size - within : end - begin;
    const int64_t line = image * shape.channels + channel;
    body(line, line * shape.size + within, length);
    begin += length;
    within = 0;
    ++image;
  }
}

struct PlaneTask {
  int64_t channel, begin, end, partial;
};

inline PlaneTask plane_task(const BatchNormShape& shape, int64_t task) {
  const int64_t channel = task / shape.blocks, block = task % shape.blocks;
  const int64_t elements = shape.images * shape.size, begin = block * shape.block;
  const int64_t end = begin + shape.block < elements ? begin + shape.block : elements;
  return {channel, begin, end, channel * shape.channel_stride + block * shape.block_stride};
}

// Calls step(chain, offset, n) over a run, spreading vectors over four chains of accumulators.
template <typename A, typename Step>
inline TILEWRIGHT_INLINE void for_each_vector_in_chains(int64_t offset, int64_t length, const Step& step) {
  constexpr int64_t kStep = kLanes<A>;
  const int64_t end = offset + length;
  for (; offset + 4 * kStep <= end; offset += 4 * kStep) {
    step(0, offset, kStep);
    step(1, offset + kStep, kStep);
    step(2, offset + 2 * kStep, kStep);
    step(3, offset + 3 * kStep, kStep);
  }
  for (; offset + kStep <= end; offset += kStep) step(0, offset, kStep);
  if (offset < end) step(1, offset, end - offset);
}

template <typename A>
inline double sum_chains(const Vec<A> (&chains)[4]) {
  return reduce_add<A>((chains[0] + chains[1]) + (chains[2] + chains[3]));
}

// How far ahead the same place of the next image lies, to be prefetched where a pass goes channel by channel: the
// processor's own prefetching ends with every run, and with ours a pass takes a third to a half of the time where runs
// are short. 0, no prefetching, where all of it is in cache.
template <typename T>
inline int64_t distance_to_next_image(const BatchNormShape& shape) {
  constexpr int64_t kInCache = int64_t{1} << 20;
  const int64_t image = shape.channels * shape.size;
  return shape.images * image * static_cast<int64_t>(sizeof(T)) > kInCache ? image : 0;
}

template <typename T>
inline TILEWRIGHT_INLINE void distance_sums(const BatchNormStatsArgs<T>& args, const PlaneTask& task, Acc<T> estimate,
                                            double& sum_d, double& sum_dd) {
  using A = Acc<T>;
  const T* x = args.x;
  const int64_t next_image = distance_to_next_image<T>(args.shape);
  Vec<A> d_chains[4] = {}, dd_chains[4] = {};
  for_each_run(args.shape, task.channel, task.begin, task.end,
               [&](int64_t, int64_t offset, int64_t length) TILEWRIGHT_INLINE {
                 for_each_vector_in_chains<A>(offset, length, [&](int chain, int64_t o, int64_t n) TILEWRIGHT_INLINE {
                   __builtin_prefetch(x + o + next_image);
                   Vec<A> d = load(x + o, n) - estimate;
                   if (n < kLanes<A>) d = keep_first(d, n);
                   d_chains[chain] += d;
                   dd_chains[chain] = fma(d, d, dd_chains[chain]);
                 });
               });
  sum_d = sum_chains<A>(d_chains);
  sum_dd = sum_chains<A>(dd_chains);
}

template <typename T>
void batch_norm_stats_planes(const BatchNormStatsArgs<T>& args, int64_t task_begin, int64_t task_end) {
  using A = Acc<T>;
  for (int64_t index = task_begin; index < task_end; ++index) {
    const PlaneTask task = plane_task(args.shape, index);
    const double count = static_cast<double>(task.end - task.begin);
    const BatchNormShape& shape = args.shape;
    const int64_t first = (task.begin / shape.size * shape.channels + task.channel) * shape.size;
    const int64_t within = task.begin % shape.size, rest = shape.size - within;
    const int64_t sample = rest < kLanes<A> ? rest : kLanes<A>;
    A estimate = finite_or_zero(reduce_add<A>(load(args.x + first + within, sample)) / static_cast<A>(sample));
    double sum_d, sum_dd;
    distance_sums(args, task, estimate, sum_d, sum_dd);
    if (estimate_is_poor(sum_d, sum_dd, count)) {
      estimate = static_cast<A>(estimate + sum_d / count);
      distance_sums(args, task, estimate, sum_d, sum_dd);
    }
    store_block_stats(estimate, sum_d, sum_dd, count, args.mean + task.partial, args.m2 + task.partial);
  }
}

template <typename T, int kActivation, bool kResidual, bool kStream>
void batch_norm_apply_planes_as(const BatchNormApplyArgs<T>& args, const BatchNormLines& lines) {
  using A = Acc<T>;
  const T *x = args.x, *residual = args.residual;
  const BatchNormShape& shape = args.shape;
  const int64_t next_image = lines.step > 1 ? distance_to_next_image<T>(shape) : 0;
  for (int64_t line = lines.begin; line < lines.end; line += lines.step) {
    const int64_t c = line % shape.channels;
    const A mean = args.mean[c], scale = args.scale[c];
    const Vec<A> shift = broadcast<A>(args.shift[c]);
    const int64_t bit_shift = line * (shape.line_bits - shape.size);
    const int64_t offset = line * shape.size + lines.from;
    for_each_vector_in_chains<A>(offset, lines.to - lines.from, [&](int, int64_t o, int64_t n) TILEWRIGHT_INLINE {
      Vec<A> v = (load(x + o, n) - mean) * scale + shift;
      if constexpr (kResidual) v += load(residual + o, n);
      if (next_image != 0) __builtin_prefetch(args.y + o + next_image, 1);
      store_activated<kActivation, kStream>(args, o, o + bit_shift, v, n);
    });
  }
}

template <typename T, bool kMasked>
void batch_norm_sums_planes_as(const BatchNormSumsArgs<T>& args, int64_t task_begin, int64_t task_end) {
  using A = Acc<T>;
  const T *dy = args.dy, *x = args.x;
  const uint8_t* passes = args.passes;
  for (int64_t index = task_begin; index < task_end; ++index) {
    const PlaneTask task = plane_task(args.shape, index);
    const A mean = args.mean[task.channel];
    const int64_t next_image = distance_to_next_image<T>(args.shape);
    Vec<A> sum_g[4] = {}, sum_gx[4] = {};
    for_each_run(args.shape, task.channel, task.begin, task.end,
                 [&](int64_t line, int64_t offset, int64_t length) TILEWRIGHT_INLINE {
                   const int64_t bit_shift = line * (args.shape.line_bits - args.shape.size);
                   for_each_vector_in_chains<A>(offset, length, [&](int chain, int64_t o, int64_t n) TILEWRIGHT_INLINE {
                     __builtin_prefetch(x + o + next_image);
                     __builtin_prefetch(dy + o + next_image);
                     const Vec<A> g = load_gradient<kMasked>(dy, passes, o, o + bit_shift, n);
                     Vec<A> d = load(x + o, n) - mean;
                     if (n < kLanes<A>) d = keep_first(d, n);
                     sum_g[chain] += g;
                     sum_gx[chain] = fma(g, d, sum_gx[chain]);
                   });
                 });
    args.sum_g[task.partial] = sum_chains<A>(sum_g);
    args.sum_gx[task.partial] = sum_chains<A>(sum_gx);
  }
}

template <typename T, bool kMasked, bool kCentred, bool kStream>
void batch_norm_grad_planes_as(const BatchNormGradArgs<T>& args, const BatchNormLines& lines) {
  using A = Acc<T>;
  const T *dy = args.dy, *x = args.x;
  const uint8_t* passes = args.passes;
  T *dx = args.dx, *dresidual = args.dresidual;
  const BatchNormShape& shape = args.shape;
  const int64_t next_image = lines.step > 1 ? distance_to_next_image<T>(shape) : 0;
  for (int64_t line = lines.begin; line < lines.end; line += lines.step) {
    const int64_t c = line % shape.channels;
    const A mean = kCentred ? args.mean[c] : A(0), mean_g = kCentred ? args.mean_g[c] : A(0);
    const A slope = kCentred ? args.slope[c] : A(0), scale = args.scale[c];
    const int64_t bit_shift = line * (shape.line_bits - shape.size);
    const int64_t offset = line * shape.size + lines.from;
    for_each_vector_in_chains<A>(offset, lines.to - lines.from, [&](int, int64_t o, int64_t n) TILEWRIGHT_INLINE {
      const Vec<A> g = load_gradient<kMasked>(dy, passes, o, o + bit_shift, n);
      if constexpr (kMasked) {
        if (dresidual != nullptr) {
          if (next_image != 0) __builtin_prefetch(dresidual + o + next_image, 1);
          store_or_stream<kStream>(dresidual + o, g, n);
        }
      }
      if (next_image != 0) __builtin_prefetch(dx + o + next_image, 1);
      Vec<A> v = g;
      if constexpr (kCentred) v = g - mean_g - (load(x + o, n) - mean) * slope;
      store_or_stream<kStream>(dx + o, v * scale, n);
    });
  }
}

}  // namespace
}  // namespace tilewright

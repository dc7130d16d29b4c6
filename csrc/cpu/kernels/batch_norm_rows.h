// Batch norm where the channels of one position lie together: per-channel values are vectors, and a few rows at a time
// share each load of them and each load and store of an accumulator.
#pragma once
#include "cpu/kernels/batch_norm_math.h"
#include "cpu/kernels/rows.h"

namespace tilewright {
namespace {

struct RowTask {
  int64_t begin, end;      // rows
  int64_t first, columns;  // channels
  int64_t partial;         // of the first channel; the others follow
};

inline RowTask row_task(const BatchNormShape& shape, int64_t task) {
  const int64_t block = task / shape.tiles, tile = task % shape.tiles;
  const int64_t begin = block * shape.block, first = tile * kBatchNormTile;
  const int64_t end = begin + shape.block < shape.images ? begin + shape.block : shape.images;
  const int64_t columns = shape.channels - first < kBatchNormTile ? shape.channels - first : kBatchNormTile;
  return {begin, end, first, columns, block * shape.block_stride + first};
}

// Fewer rows at once are fewer streams for the prefetcher to follow, more are fewer loads and stores of what they
// share: four to sum, two to apply, one for the gradient (1.5x the time with four, where dy, x, y, dx and dresidual
// pass by).
//
// Calls step.template operator()<kRows>(row, offset of its vector, column from `first` on, n) over columns [first,
// last) of rows [row, end), kRows rows at a time.
template <typename A, int kRows, typename Step>
inline TILEWRIGHT_INLINE void for_each_row_group(int64_t stride, int64_t row, int64_t end, int64_t first, int64_t last,
                                                 const Step& step) {
  for (; row + kRows <= end; row += kRows) {
    for_each_vector<A>(last - first, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      step.template operator()<kRows>(row, row * stride + first + c, c, n);
    });
  }
  for (; row < end; ++row) {
    for_each_vector<A>(last - first, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      step.template operator()<1>(row, row * stride + first + c, c, n);
    });
  }
}

// Room for the tile's columns and the lanes of its last vector.
template <typename A>
constexpr int64_t kTileRoom = kBatchNormTile + kLanes<A>;

template <typename A>
inline void add_to(A* sums, Vec<A> v) {
  store(sums, load(sums) + v);
}

// sum_d, sum_dd: [columns], set to the sums of d = x - estimate and of d^2 over the task's rows.
template <typename T>
inline void distance_sums(const BatchNormStatsArgs<T>& args, const RowTask& task, const Acc<T>* estimate, Acc<T>* sum_d,
                          Acc<T>* sum_dd) {
  using A = Acc<T>;
  const T* x = args.x;
  const int64_t stride = args.shape.channels;
  for (int64_t c = 0; c < task.columns; c += kLanes<A>) {
    store(sum_d + c, Vec<A>{});
    store(sum_dd + c, Vec<A>{});
  }
  for_each_row_group<A, 8>(stride, task.begin, task.end, task.first, task.first + task.columns,
                           [&]<int kRows>(int64_t, int64_t o, int64_t c, int64_t n) TILEWRIGHT_INLINE {
                             const Vec<A> centre = load(estimate + c);
                             Vec<A> d_sum{}, dd_sum{};
#pragma GCC unroll 8
                             for (int r = 0; r < kRows; ++r) {
                               const Vec<A> d = load(x + o + r * stride, n) - centre;
                               d_sum += d;
                               dd_sum = fma(d, d, dd_sum);
                             }
                             add_to(sum_d + c, d_sum);
                             add_to(sum_dd + c, dd_sum);
                           });
}

template <typename T>
void batch_norm_stats_rows(const BatchNormStatsArgs<T>& args, int64_t task_begin, int64_t task_end) {
  using A = Acc<T>;
  const int64_t stride = args.shape.channels;
  for (int64_t index = task_begin; index < task_end; ++index) {
    const RowTask task = row_task(args.shape, index);
    const int64_t rows = task.end - task.begin, sample = rows < 8 ? rows : 8;
    const double count = static_cast<double>(rows);
    A estimate[kTileRoom<A>], sum_d[kTileRoom<A>], sum_dd[kTileRoom<A>];
    for_each_vector<A>(task.columns, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      Vec<A> sum{};
      for (int64_t r = 0; r < sample; ++r) sum += load(args.x + (task.begin + r) * stride + task.first + c, n);
      store(estimate + c, sum / static_cast<A>(sample));
    });
    for (int64_t c = 0; c < task.columns; ++c) estimate[c] = finite_or_zero(estimate[c]);
    distance_sums(args, task, estimate, sum_d, sum_dd);
    bool poor = false;
    for (int64_t c = 0; c < task.columns; ++c) poor |= estimate_is_poor(sum_d[c], sum_dd[c], count);
    if (poor) {
      for (int64_t c = 0; c < task.columns; ++c)
        estimate[c] = finite_or_zero(static_cast<A>(estimate[c] + sum_d[c] / count));
      distance_sums(args, task, estimate, sum_d, sum_dd);
    }
    for (int64_t c = 0; c < task.columns; ++c) {
      store_block_stats(estimate[c], sum_d[c], sum_dd[c], count, args.mean + task.partial + c,
                        args.m2 + task.partial + c);
    }
  }
}

template <typename T, int kActivation, bool kResidual, bool kStream>
void batch_norm_apply_rows_as(const BatchNormApplyArgs<T>& args, const BatchNormLines& lines) {
  using A = Acc<T>;
  const T *x = args.x, *residual = args.residual;
  const int64_t stride = args.shape.channels;
  const A *means = args.mean + lines.from, *scales = args.scale + lines.from, *shifts = args.shift + lines.from;
  for_each_row_group<A, 2>(stride, lines.begin, lines.end, lines.from, lines.to,
                           [&]<int kRows>(int64_t row, int64_t o, int64_t c, int64_t n) TILEWRIGHT_INLINE {
                             const Vec<A> mean = load(means + c, n), scale = load(scales + c, n),
                                          shift = load(shifts + c, n);
#pragma GCC unroll 4
                             for (int r = 0; r < kRows; ++r) {
                               Vec<A> v = (load(x + o + r * stride, n) - mean) * scale + shift;
                               if constexpr (kResidual) v += load(residual + o + r * stride, n);
                               store_activated<kActivation, kStream>(
                                   args, o + r * stride, (row + r) * args.shape.line_bits + lines.from + c, v, n);
                             }
                           });
}

template <typename T, bool kMasked>
void batch_norm_sums_rows_as(const BatchNormSumsArgs<T>& args, int64_t task_begin, int64_t task_end) {
  using A = Acc<T>;
  const T *dy = args.dy, *x = args.x;
  const uint8_t* passes = args.passes;
  const int64_t stride = args.shape.channels;
  for (int64_t index = task_begin; index < task_end; ++index) {
    const RowTask task = row_task(args.shape, index);
    const A* means = args.mean + task.first;
    A sum_g[kTileRoom<A>] = {}, sum_gx[kTileRoom<A>] = {};
    for_each_row_group<A, 4>(stride, task.begin, task.end, task.first, task.first + task.columns,
                             [&]<int kRows>(int64_t row, int64_t o, int64_t c, int64_t n) TILEWRIGHT_INLINE {
                               const Vec<A> mean = load(means + c, n);
                               Vec<A> g_sum{}, gx_sum{};
#pragma GCC unroll 4
                               for (int r = 0; r < kRows; ++r) {
                                 const Vec<A> g = load_gradient<kMasked>(
                                     dy, passes, o + r * stride, (row + r) * args.shape.line_bits + task.first + c, n);
                                 g_sum += g;
                                 gx_sum = fma(g, load(x + o + r * stride, n) - mean, gx_sum);
                               }
                               add_to(sum_g + c, g_sum);
                               add_to(sum_gx + c, gx_sum);
                             });
    for (int64_t c = 0; c < task.columns; ++c) {
      args.sum_g[task.partial + c] = sum_g[c];
      args.sum_gx[task.partial + c] = sum_gx[c];
    }
  }
}

template <typename T, bool kMasked, bool kCentred, bool kStream>
void batch_norm_grad_rows_as(const BatchNormGradArgs<T>& args, const BatchNormLines& lines) {
  using A = Acc<T>;
  const T *dy = args.dy, *x = args.x;
  const uint8_t* passes = args.passes;
  T *dx = args.dx, *dresidual = args.dresidual;
  const int64_t stride = args.shape.channels, first = lines.from;
  for_each_row_group<A, 1>(stride, lines.begin, lines.end, lines.from, lines.to,
                           [&]<int kRows>(int64_t row, int64_t o, int64_t c, int64_t n) TILEWRIGHT_INLINE {
                             const Vec<A> scale = load(args.scale + first + c, n);
                             Vec<A> mean{}, mean_g{}, slope{};
                             if constexpr (kCentred) {
                               mean = load(args.mean + first + c, n);
                               mean_g = load(args.mean_g + first + c, n);
                               slope = load(args.slope + first + c, n);
                             }
                             const Vec<A> g =
                                 load_gradient<kMasked>(dy, passes, o, row * args.shape.line_bits + first + c, n);
                             if constexpr (kMasked) {
                               if (dresidual != nullptr) store_or_stream<kStream>(dresidual + o, g, n);
                             }
                             Vec<A> v = g;
                             if constexpr (kCentred) v = g - mean_g - (load(x + o, n) - mean) * slope;
                             store_or_stream<kStream>(dx + o, v * scale, n);
                           });
}

}  // namespace
}  // namespace tilewright

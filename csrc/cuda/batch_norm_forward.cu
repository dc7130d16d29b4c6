// batch_norm forward. Statistics of a channel: each thread takes chunks of values into registers, finds a chunk's mean
// and centred sum of squares there, and merges them into its own by Chan's formula; the block's are merged the same
// way. All values are taken relative to the first of the part, so that x + 1e4 keeps the digits of its mean.
//
//   batch, few values    one launch: statistics, then y, from the same block
//   batch                three launches: partial statistics, batch_norm_merge_statistics, y
//   given statistics     one launch: y
#include "cuda/activation.cuh"
#include "cuda/batch_norm_layout.cuh"

namespace tilewright::gpu {
namespace {

// Of the values of this task. mean is relative to shift, m2 the sum of squared distances from it.
template <typename Layout>
struct Moments {
  using A = typename Layout::A;
  A shift[Layout::kChannels], mean[Layout::kChannels], m2[Layout::kChannels];
};

template <typename Layout>
__device__ __forceinline__ Moments<Layout> measure(const typename Layout::Element* x, const Layout& task) {
  using A = typename Layout::A;
  constexpr int kVec = Layout::kVec, kChannels = Layout::kChannels;
  constexpr int kItems = kVec == 8 ? 4 : 8;  // at most 32 values in registers
  Moments<Layout> result;
  task.first_values(x, result.shift);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) result.shift[c] = finite_or_zero(result.shift[c]);
  A sum[kChannels] = {}, m2[kChannels] = {}, count = A(0), inverse = A(0);  // inverse: 1 / count, or 0
  for_each_chunk<kItems>(task.template walk<true>(), [&](const auto& offsets, const auto& chunk) {
    A d[kItems][kVec], chunk_sum[kChannels] = {}, chunk_m2[kChannels] = {};
    load_chunk(x, offsets, chunk, d);
    const A added = static_cast<A>(chunk.items * (kVec / kChannels)), total = count + added;
    const A of_added = A(1) / added, of_total = A(1) / total, share = count * added * of_total;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        d[i][v] -= result.shift[v % kChannels];
        if (chunk.has(i)) chunk_sum[v % kChannels] += d[i][v];
      }
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        const A distance = d[i][v] - chunk_sum[v % kChannels] * of_added;
        if (chunk.has(i)) chunk_m2[v % kChannels] += distance * distance;
      }
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const A distance = chunk_sum[c] * of_added - sum[c] * inverse;
      m2[c] += chunk_m2[c] + distance * distance * share;
      sum[c] += chunk_sum[c];
    }
    count = total;
    inverse = of_total;
  });
#pragma unroll
  for (int c = 0; c < kChannels; ++c) result.mean[c] = sum[c];
  task.sum(result.mean);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    result.mean[c] /= static_cast<A>(task.values());
    const A distance = sum[c] * inverse - result.mean[c];
    result.m2[c] = m2[c] + distance * distance * count;
  }
  task.sum(result.m2);
  return result;
}

// y = act((x - mean) * rstd * weight + bias + residual) over the task, last values first. kSmooth: is there a gelu or
// silu, whose code would cost the others registers?
template <bool kSmooth, typename Layout, typename T, typename A>
__device__ __forceinline__ void normalise(const BatchNormForwardArgs<T>& args, const Layout& task,
                                          const A (&mean)[Layout::kChannels], const A (&var)[Layout::kChannels]) {
  constexpr int kVec = Layout::kVec, kChannels = Layout::kChannels;
  constexpr int kItems = kVec == 1 ? (kSmooth ? 4 : 8) : kSmooth || kVec == 8 ? 2 : 4;
  const Parameter<T> weights{args.weight, args.wide_parameters}, biases{args.bias, args.wide_parameters};
  A scale[kChannels], shift[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    A weight[1] = {A(1)}, bias[1] = {A(0)};
    if (task.inside()) {
      weights.template read<1>(task.channel + c, A(1), weight);
      biases.template read<1>(task.channel + c, A(0), bias);
    }
    scale[c] = reciprocal_deviation(var[c], args.eps, args.given_mean == nullptr) * weight[0];
    shift[c] = bias[0];
  }
  for_each_chunk<kItems>(task.template walk<false>(), [&](const auto& offsets, const auto& chunk) {
    A x[kItems][kVec], residual[kItems][kVec];
    load_chunk(args.x, offsets, chunk, x);
    if (args.residual != nullptr) load_chunk(args.residual, offsets, chunk, residual);
    map_elements(x, [&](A value, int, int v) {
      return (value - mean[v % kChannels]) * scale[v % kChannels] + shift[v % kChannels];
    });
    if (args.residual != nullptr) map_elements(x, [&](A value, int i, int v) { return value + residual[i][v]; });
    if constexpr (kSmooth) {
      if (args.pre != nullptr) store_chunk(args.pre, offsets, chunk, x);
      activate(args.activation, x);
    } else if (args.activation == Activation::kRelu) {
      map_elements(x, [](A value, int, int) { return relu(value); });
    } else if (args.activation == Activation::kRelu6) {
      map_elements(x, [](A value, int, int) { return relu6(value); });
    }
    store_chunk(args.y, offsets, chunk, x);
  });
}

template <typename Layout, bool kSmooth, typename T>
__global__ void __launch_bounds__(kBatchNormThreads, kBatchNormBlocks)
    batch_norm_statistics(const BatchNormForwardArgs<T> args, const BatchNormGrid grid) {
  using A = Acc<T>;
  constexpr int kChannels = Layout::kChannels;
  for (int64_t index = blockIdx.x; index < grid.columns * grid.parts; index += gridDim.x) {
    const Layout task(grid, index);
    const Moments<Layout> moments = measure(args.x, task);
    A mean[kChannels], var[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const double whole = static_cast<double>(moments.shift[c]) + static_cast<double>(moments.mean[c]);
      if (args.partials != nullptr && task.writes()) {
        double* partial = args.partials + task.part * grid.channels + task.channel + c;
        partial[0] = whole;
        partial[grid.parts * grid.channels] = static_cast<double>(moments.m2[c]);
      }
      mean[c] = static_cast<A>(whole);
      var[c] = moments.m2[c] / static_cast<A>(task.values());
      if (args.partials == nullptr && task.writes()) {
        args.mean[task.channel + c] = mean[c];
        args.var[task.channel + c] = var[c];
      }
    }
    if (args.partials == nullptr) normalise<kSmooth>(args, task, mean, var);
  }
}

template <typename Layout, bool kSmooth, typename T>
__global__ void __launch_bounds__(kBatchNormThreads, kBatchNormBlocks)
    batch_norm_apply(const BatchNormForwardArgs<T> args, const BatchNormGrid grid) {
  using A = Acc<T>;
  constexpr int kChannels = Layout::kChannels;
  const bool given = args.given_mean != nullptr;
  const Parameter<T> means{given ? args.given_mean : args.mean, !given || args.wide_parameters};
  const Parameter<T> vars{given ? args.given_var : args.var, !given || args.wide_parameters};
  for (int64_t index = blockIdx.x; index < grid.columns * grid.parts; index += gridDim.x) {
    const Layout task(grid, index);
    A mean[kChannels], var[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      A one_mean[1] = {A(0)}, one_var[1] = {A(1)};
      if (task.inside()) {
        means.template read<1>(task.channel + c, A(0), one_mean);
        vars.template read<1>(task.channel + c, A(0), one_var);
      }
      mean[c] = one_mean[0];
      var[c] = one_var[0];
      if (given && task.part == 0 && task.writes()) {
        args.mean[task.channel + c] = mean[c];
        args.var[task.channel + c] = var[c];
      }
    }
    normalise<kSmooth>(args, task, mean, var);
  }
}

template <typename Layout, bool kSmooth, typename T>
Status run(const BatchNormForwardArgs<T>& args, const Launch& where) {
  const BatchNormSplit reduction = batch_norm_reduction(args.shape, sizeof(T));
  if (args.given_mean == nullptr) {
    const BatchNormGrid grid = batch_norm_grid(args.shape, reduction, Layout::kVec);
    // Partial statistics need no activation, and no code for one.
    constexpr bool kAlwaysSmooth = Layout::kVec == 1;
    const auto kernel = args.partials == nullptr ? batch_norm_statistics<Layout, kSmooth, T>
                                                 : batch_norm_statistics<Layout, kAlwaysSmooth, T>;
    Status status = launch(where, kernel, batch_norm_blocks(grid), kBatchNormThreads, 0, args, grid);
    if (status != 0 || args.partials == nullptr) return status;
    status = batch_norm_merge_statistics(args, where);
    if (status != 0) return status;
  }
  // After partial statistics the same blocks take the same values, the last first.
  const BatchNormSplit split = args.given_mean != nullptr ? batch_norm_map(args.shape, sizeof(T)) : reduction;
  const BatchNormGrid grid = batch_norm_grid(args.shape, split, Layout::kVec);
  return launch(where, batch_norm_apply<Layout, kSmooth, T>, batch_norm_blocks(grid), kBatchNormThreads, 0, args, grid);
}

template <typename Layout, typename T>
Status run_with_activation(const BatchNormForwardArgs<T>& args, const Launch& where) {
  const bool smooth = args.activation != Activation::kNone && !gradient_reads_output(args.activation);
  // Scalar accesses are not bound by registers: one instance serves all activations.
  if (Layout::kVec == 1 || smooth) return run<Layout, true>(args, where);
  return run<Layout, Layout::kVec == 1>(args, where);
}

}  // namespace

template <typename T>
Status batch_norm_forward(const BatchNormForwardArgs<T>& args, const Launch& where) {
  constexpr int kVec = kWidest<T>;
  const bool wide = batch_norm_width(args.shape, sizeof(T)) == kVec && is_aligned_for_vectors(args.x) &&
                    is_aligned_for_vectors(args.residual) && is_aligned_for_vectors(args.y) &&
                    is_aligned_for_vectors(args.pre);
  if (args.shape.rows) {
    return wide ? run_with_activation<RowsLayout<T, kVec>>(args, where)
                : run_with_activation<RowsLayout<T, 1>>(args, where);
  }
  return wide ? run_with_activation<PlanesLayout<T, kVec>>(args, where)
              : run_with_activation<PlanesLayout<T, 1>>(args, where);
}

template <typename T>
int64_t batch_norm_parts(const BatchNormShape& shape) {
  return batch_norm_reduction(shape, sizeof(T)).parts;
}

#define TILEWRIGHT_INSTANTIATE(T)                                                    \
  template Status batch_norm_forward(const BatchNormForwardArgs<T>&, const Launch&); \
  template int64_t batch_norm_parts<T>(const BatchNormShape&);
TILEWRIGHT_INSTANTIATE(float)
TILEWRIGHT_INSTANTIATE(double)
TILEWRIGHT_INSTANTIATE(BF16)
TILEWRIGHT_INSTANTIATE(F16)
#undef TILEWRIGHT_INSTANTIATE

}  // namespace tilewright::gpu

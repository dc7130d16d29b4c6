// batch_norm backward, with g = dy, or where forward applied relu, dy where its output is positive and 0 elsewhere.
//
//   channel is one part    one launch: sums of g and g * (x - mean), then dx, from the same block
//   else                   three launches: partial sums, batch_norm_merge_sums, dx
//   given statistics       dx needs no sums: one launch, or two where the parameters' gradients are wanted too
//
// The pass over sums writes dresidual, which is g: what follows reads that instead of dy and y.
#include "cuda/activation.cuh"
#include "cuda/batch_norm_layout.cuh"

namespace tilewright::gpu {
namespace {

// What dx needs of each channel that a thread keeps: dx = (g - mean_g - (x - mean) * slope) * scale
template <typename Layout>
struct Factors {
  using A = typename Layout::A;
  A mean[Layout::kChannels], rstd[Layout::kChannels], scale[Layout::kChannels], mean_g[Layout::kChannels],
      slope[Layout::kChannels];
};

template <typename T, typename Layout>
__device__ __forceinline__ Factors<Layout> read_factors(const BatchNormBackwardArgs<T>& args, const Layout& task) {
  using A = Acc<T>;
  const Parameter<T> weights{args.weight, args.wide_weight};
  Factors<Layout> factors = {};
  if (!task.inside()) return factors;
#pragma unroll
  for (int c = 0; c < Layout::kChannels; ++c) {
    const int64_t channel = task.channel + c;
    A weight[1];
    weights.template read<1>(channel, A(1), weight);
    factors.mean[c] = args.mean[channel];
    factors.rstd[c] = reciprocal_deviation(args.var[channel], args.eps, args.training);
    factors.scale[c] = factors.rstd[c] * weight[0];
  }
  return factors;
}

// g = dy, stopped by a relu whose output was y (null: none): native's rule, which lets a NaN through.
template <int kItems, int kVec, typename T, typename Items>
__device__ __forceinline__ void load_gradient(const T* dy, const T* y, const int64_t (&offsets)[kItems],
                                              const Items& chunk, Acc<T> (&g)[kItems][kVec]) {
  using A = Acc<T>;
  load_chunk(dy, offsets, chunk, g);
  if (y == nullptr) return;
  A output[kItems][kVec];
  load_chunk(y, offsets, chunk, output);
  map_elements(g, [&](A value, int i, int v) { return output[i][v] <= A(0) ? A(0) : value; });
}

template <int kVec>
constexpr int kAccesses = kVec == 1   ? 8
                          : kVec == 8 ? 2
                                      : 4;

// dx, last values first; where `writes_residual`, dresidual as well.
template <typename T, typename Layout>
__device__ __forceinline__ void write_gradient(const BatchNormBackwardArgs<T>& args, const T* dy, const T* y,
                                               bool writes_residual, const Layout& task,
                                               const Factors<Layout>& factors) {
  using A = Acc<T>;
  constexpr int kVec = Layout::kVec, kChannels = Layout::kChannels, kItems = kAccesses<kVec>;
  for_each_chunk<kItems>(task.template walk<false>(), [&](const auto& offsets, const auto& chunk) {
    A g[kItems][kVec], x[kItems][kVec];
    load_gradient(dy, y, offsets, chunk, g);
    if (args.training) load_chunk(args.x, offsets, chunk, x);
    if (writes_residual) store_chunk(args.dresidual, offsets, chunk, g);
    if (args.dx == nullptr) return;
    if (args.training) {
      map_elements(g, [&](A value, int i, int v) {
        const int c = v % kChannels;
        return value - factors.mean_g[c] - (x[i][v] - factors.mean[c]) * factors.slope[c];
      });
    }
    map_elements(g, [&](A value, int, int v) { return value * factors.scale[v % kChannels]; });
    store_chunk(args.dx, offsets, chunk, g);
  });
}

// sums[0..] of g and sums[kChannels..] of g * (x - mean), over the whole block. Writes dresidual, and with given
// statistics dx.
template <typename T, typename Layout>
__device__ __forceinline__ void add_gradients(const BatchNormBackwardArgs<T>& args, const Layout& task,
                                              const Factors<Layout>& factors, Acc<T> (&sums)[2 * Layout::kChannels]) {
  using A = Acc<T>;
  constexpr int kVec = Layout::kVec, kChannels = Layout::kChannels, kItems = kAccesses<kVec>;
  const bool writes_dx = !args.training && args.dx != nullptr;
  for_each_chunk<kItems>(task.template walk<true>(), [&](const auto& offsets, const auto& chunk) {
    A g[kItems][kVec], x[kItems][kVec];
    load_chunk(args.x, offsets, chunk, x);
    load_gradient(args.dy, args.y, offsets, chunk, g);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        if (!chunk.has(i)) continue;
        sums[v % kChannels] += g[i][v];
        sums[kChannels + v % kChannels] += g[i][v] * (x[i][v] - factors.mean[v % kChannels]);
      }
    }
    if (args.dresidual != nullptr) store_chunk(args.dresidual, offsets, chunk, g);
    if (!writes_dx) return;
    map_elements(g, [&](A value, int, int v) { return value * factors.scale[v % kChannels]; });
    store_chunk(args.dx, offsets, chunk, g);
  });
  task.sum(sums);
}

template <typename Layout, typename T>
__global__ void __launch_bounds__(kBatchNormThreads, kBatchNormBlocks)
    batch_norm_sums(const BatchNormBackwardArgs<T> args, const BatchNormGrid grid) {
  using A = Acc<T>;
  constexpr int kChannels = Layout::kChannels;
  const ParameterGradient<T> dweight{args.dweight, args.wide_gradients}, dbias{args.dbias, args.wide_gradients};
  for (int64_t index = blockIdx.x; index < grid.columns * grid.parts; index += gridDim.x) {
    const Layout task(grid, index);
    Factors<Layout> factors = read_factors(args, task);
    A sums[2 * kChannels] = {};
    add_gradients(args, task, factors, sums);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const A sum_g = sums[c], sum_gx = sums[kChannels + c], count = static_cast<A>(task.values());
      factors.mean_g[c] = sum_g / count;
      factors.slope[c] = sum_gx * factors.rstd[c] * factors.rstd[c] / count;
      if (!task.writes()) continue;
      const int64_t channel = task.channel + c;
      if (args.partials != nullptr) {
        args.partials[task.part * grid.channels + channel] = sum_g;
        args.partials[(grid.parts + task.part) * grid.channels + channel] = sum_gx;
      } else {
        dweight.write(channel, sum_gx * factors.rstd[c]);
        dbias.write(channel, sum_g);
      }
    }
    if (args.partials != nullptr || !args.training || args.dx == nullptr) continue;
    const bool reads_residual = args.dresidual != nullptr;  // each thread what it wrote itself
    write_gradient(args, reads_residual ? args.dresidual : args.dy, reads_residual ? nullptr : args.y, false, task,
                   factors);
  }
}

// has_sums: batch_norm_sums has run before, and written dresidual.
template <typename Layout, typename T>
__global__ void __launch_bounds__(kBatchNormThreads, kBatchNormBlocks)
    batch_norm_gradient(const BatchNormBackwardArgs<T> args, const BatchNormGrid grid, bool has_sums) {
  constexpr int kChannels = Layout::kChannels;
  const bool reads_residual = has_sums && args.dresidual != nullptr;
  for (int64_t index = blockIdx.x; index < grid.columns * grid.parts; index += gridDim.x) {
    const Layout task(grid, index);
    Factors<Layout> factors = read_factors(args, task);
    if (has_sums && task.inside()) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        factors.mean_g[c] = args.factors[task.channel + c];
        factors.slope[c] = args.factors[grid.channels + task.channel + c];
      }
    }
    write_gradient(args, reads_residual ? args.dresidual : args.dy, reads_residual ? nullptr : args.y,
                   !has_sums && args.dresidual != nullptr, task, factors);
  }
}

template <typename Layout, typename T>
Status run(const BatchNormBackwardArgs<T>& args, const Launch& where) {
  const bool has_sums = args.dweight != nullptr || args.dbias != nullptr || (args.training && args.dx != nullptr);
  BatchNormSplit split = batch_norm_map(args.shape, sizeof(T));
  if (has_sums) {
    split = batch_norm_reduction(args.shape, sizeof(T));
    const BatchNormGrid grid = batch_norm_grid(args.shape, split, Layout::kVec);
    Status status =
        launch(where, batch_norm_sums<Layout, T>, batch_norm_blocks(grid), kBatchNormThreads, 0, args, grid);
    if (status != 0 || args.partials == nullptr) return status;
    status = batch_norm_merge_sums(args, where);
    if (status != 0 || !args.training || args.dx == nullptr) return status;
  }
  const BatchNormGrid grid = batch_norm_grid(args.shape, split, Layout::kVec);
  return launch(where, batch_norm_gradient<Layout, T>, batch_norm_blocks(grid), kBatchNormThreads, 0, args, grid,
                has_sums);
}

}  // namespace

template <typename T>
Status batch_norm_backward(const BatchNormBackwardArgs<T>& args, const Launch& where) {
  constexpr int kVec = kWidest<T>;
  const bool wide = batch_norm_width(args.shape, sizeof(T)) == kVec && is_aligned_for_vectors(args.dy) &&
                    is_aligned_for_vectors(args.x) && is_aligned_for_vectors(args.y) &&
                    is_aligned_for_vectors(args.dx) && is_aligned_for_vectors(args.dresidual);
  if (args.shape.rows) return wide ? run<RowsLayout<T, kVec>>(args, where) : run<RowsLayout<T, 1>>(args, where);
  return wide ? run<PlanesLayout<T, kVec>>(args, where) : run<PlanesLayout<T, 1>>(args, where);
}

template Status batch_norm_backward(const BatchNormBackwardArgs<float>&, const Launch&);
template Status batch_norm_backward(const BatchNormBackwardArgs<double>&, const Launch&);
template Status batch_norm_backward(const BatchNormBackwardArgs<BF16>&, const Launch&);
template Status batch_norm_backward(const BatchNormBackwardArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu

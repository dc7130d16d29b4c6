// What lies between the passes of batch_norm, and the running statistics: one value per channel, in float64.
//
// A block merges 32 channels; 16 lanes of each take every 16th part, and their sums are added in order.
#include <algorithm>

#include "cuda/batch_norm_layout.cuh"

namespace tilewright::gpu {
namespace {

constexpr int kColumns = 32, kLanes = 16, kThreads = kColumns * kLanes;

// Sum over a channel's lanes, the same bits for each.
__device__ __forceinline__ double sum_over_lanes(double value) {
  __shared__ double of_lane[kLanes][kColumns];
  const int column = static_cast<int>(threadIdx.x) % kColumns, lane = static_cast<int>(threadIdx.x) / kColumns;
  of_lane[lane][column] = value;
  __syncthreads();
  double sum = 0.0;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) sum += of_lane[i][column];
  __syncthreads();  // the array is written again by the next call
  return sum;
}

// partials: [2, parts, channels], mean and centred sum of squares. All means are taken relative to the first, so that
// equal ones leave no variance.
template <typename A>
__global__ void __launch_bounds__(kThreads) merge_statistics(const double* partials, A* mean, A* var, int64_t channels,
                                                             BatchNormSplit split, int64_t count, double of_count) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x % kColumns;
  const int lane = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t parts = channel < channels ? split.parts : 0;
  const double *means = partials + channel, *m2s = means + split.parts * channels;
  const double first = parts > 0 ? finite_or_zero(means[0]) : 0.0;
  double sum = 0.0;
  for (int64_t part = lane; part < parts; part += kLanes) {
    const auto values = static_cast<double>(min(split.part, count - part * split.part));
    sum += (means[part * channels] - first) * values;
  }
  const double centre = sum_over_lanes(sum) * of_count;
  double m2 = 0.0;
  for (int64_t part = lane; part < parts; part += kLanes) {
    const auto values = static_cast<double>(min(split.part, count - part * split.part));
    const double distance = means[part * channels] - first - centre;
    m2 += m2s[part * channels] + distance * distance * values;
  }
  m2 = sum_over_lanes(m2);
  if (lane == 0 && channel < channels) {
    mean[channel] = static_cast<A>(first + centre);
    var[channel] = static_cast<A>(m2 * of_count);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    merge_sums(const BatchNormBackwardArgs<T> args, int64_t parts_of_channel, double of_count) {
  using A = Acc<T>;
  const int64_t channels = args.shape.channels;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x % kColumns;
  const int lane = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t parts = channel < channels ? parts_of_channel : 0;
  const A *gs = args.partials + channel, *gxs = gs + parts_of_channel * channels;
  double sum_g = 0.0, sum_gx = 0.0;
  for (int64_t part = lane; part < parts; part += kLanes) {
    sum_g += static_cast<double>(gs[part * channels]);
    sum_gx += static_cast<double>(gxs[part * channels]);
  }
  sum_g = sum_over_lanes(sum_g);
  sum_gx = sum_over_lanes(sum_gx);
  if (lane != 0 || channel >= channels) return;
  const auto rstd = static_cast<double>(reciprocal_deviation(args.var[channel], args.eps, args.training));
  const ParameterGradient<T> dweight{args.dweight, args.wide_gradients}, dbias{args.dbias, args.wide_gradients};
  dweight.write(channel, static_cast<A>(sum_gx * rstd));
  dbias.write(channel, static_cast<A>(sum_g));
  args.factors[channel] = static_cast<A>(sum_g * of_count);
  args.factors[channels + channel] = static_cast<A>(sum_gx * rstd * rstd * of_count);
}

// Of a wide accumulator in the running tensor's own type.
template <typename T>
__device__ __forceinline__ void move_towards(T* running, double batch, double momentum) {
  const auto before = static_cast<double>(widen(*running));
  *running = narrow<T>(static_cast<Acc<T>>(momentum * batch + (1.0 - momentum) * before));
}

template <typename T>
__global__ void __launch_bounds__(kBatchNormThreads) update_statistics(const BatchNormUpdateArgs<T> args) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kBatchNormThreads + threadIdx.x;
  if (channel >= args.channels) return;
  const auto mean = static_cast<double>(args.mean[channel]), var = static_cast<double>(args.var[channel]);
  move_towards(args.running_mean + channel * args.mean_stride, mean, args.momentum);
  move_towards(args.running_var + channel * args.var_stride, var * args.unbiased, args.momentum);
}

dim3 blocks_of(int64_t channels, int64_t of_block) { return dim3(static_cast<unsigned>(divide_up(channels, of_block))); }

}  // namespace

template <typename T>
Status batch_norm_merge_statistics(const BatchNormForwardArgs<T>& args, const Launch& where) {
  const int64_t count = batch_norm_count(args.shape), channels = args.shape.channels;
  return launch(where, merge_statistics<Acc<T>>, blocks_of(channels, kColumns), kThreads, 0, args.partials, args.mean,
                args.var, channels, batch_norm_reduction(args.shape, sizeof(T)), count,
                1.0 / static_cast<double>(count));
}

template <typename T>
Status batch_norm_merge_sums(const BatchNormBackwardArgs<T>& args, const Launch& where) {
  return launch(where, merge_sums<T>, blocks_of(args.shape.channels, kColumns), kThreads, 0, args,
                batch_norm_parts<T>(args.shape), 1.0 / static_cast<double>(batch_norm_count(args.shape)));
}

template <typename T>
Status batch_norm_update_stats(const BatchNormUpdateArgs<T>& args, const Launch& where) {
  return launch(where, update_statistics<T>, blocks_of(args.channels, kBatchNormThreads), kBatchNormThreads, 0, args);
}

#define TILEWRIGHT_INSTANTIATE(T)                                                                 \
  template Status batch_norm_merge_statistics(const BatchNormForwardArgs<T>&, const Launch&); \
  template Status batch_norm_merge_sums(const BatchNormBackwardArgs<T>&, const Launch&);      \
  template Status batch_norm_update_stats(const BatchNormUpdateArgs<T>&, const Launch&);
TILEWRIGHT_INSTANTIATE(float)
TILEWRIGHT_INSTANTIATE(double)
TILEWRIGHT_INSTANTIATE(BF16)
TILEWRIGHT_INSTANTIATE(F16)
#undef TILEWRIGHT_INSTANTIATE

}  // namespace tilewright::gpu

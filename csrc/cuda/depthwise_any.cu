// Depthwise convolution for everything that has no tiles: other kernel sizes and strides, float64, several filters of a
// channel in channels_last, channels that do not fill accesses. A thread owns four outputs a quarter of a row apart, so
// that neighbouring threads own neighbouring outputs and a weight read serves four:
//
//   x    h            h + q            h + 2q           h + 3q         q = ceil(width / 4), threads h = 0 ... q - 1
//
// Overlapping windows are served by the L1 cache.
#include "cuda/depthwise.cuh"

namespace tilewright::gpu {
namespace {

constexpr int kOutputs = 4, kAnyBlock = 128;
constexpr int kAnyBlocks = 4;  // at a time on a multiprocessor: registers enough that nothing is spilled

struct Direction {
  int stride, padding, dilation;
};

// The position that tap i of output `at` reads, -1 for none (gathering, between the strides).
__device__ __forceinline__ int source(const Direction& along, bool gathers, int at, int i) {
  if (!gathers) return at * along.stride - along.padding + i * along.dilation;
  const int reached = at + along.padding - i * along.dilation;
  if (along.stride == 1 || reached < 0) return reached;
  const int whole = reached / along.stride;
  return whole * along.stride == reached ? whole : -1;
}

// Elements from an image, channel, row or column to the next.
struct Steps {
  int64_t image, channel, row, column;
};
template <typename T>
__device__ __forceinline__ Steps steps_of(const DepthwiseImages<T>& images, bool channels_last) {
  const int64_t plane = static_cast<int64_t>(images.height) * images.width;
  if (channels_last) {
    return {plane * images.channels, 1, static_cast<int64_t>(images.width) * images.channels, images.channels};
  }
  return {plane * images.channels, plane, images.width, 1};
}

// Which outputs a thread owns: column + n * quarter for n = 0 ... 3.
struct Place {
  int64_t image;
  int channel, y, column;
};
template <int kVec>
__device__ __forceinline__ Place place_of(int64_t at, int accesses, int height, int quarter, bool channels_last) {
  if (channels_last) {
    const Quotient a = divide(at, accesses), b = divide(a.whole, quarter), c = divide(b.whole, height);
    return {c.whole, a.rest * kVec, c.rest, b.rest};
  }
  const Quotient a = divide(at, quarter), b = divide(a.whole, height), c = divide(b.whole, accesses);
  return {c.whole, c.rest * kVec, b.rest, a.rest};
}

template <typename T, int kVec>
__device__ __forceinline__ void add_filter(const DepthwiseArgs<T>& args, const Steps& steps, const T* images,
                                           int filter, int y, int x, int quarter, Acc<T> (&sums)[kOutputs][kVec]) {
  const auto& g = args.geometry;
  const Direction down{g.stride[0], g.padding[0], g.dilation[0]}, across{g.stride[1], g.padding[1], g.dilation[1]};
  for (int i = 0; i < g.kernel[0]; ++i) {
    const int in_y = source(down, g.gathers, y, i);
    if (!is_inside(in_y, args.in.height)) continue;
    const T* row = images + in_y * steps.row;
    const T* weights = args.weight.data + filter * args.weight.filter + i * args.weight.row;
    for (int j = 0; j < g.kernel[1]; ++j) {
      Acc<T> weight[kVec];
#pragma unroll
      for (int v = 0; v < kVec; ++v) weight[v] = widen(weights[v * args.weight.filter + j * args.weight.col]);
#pragma unroll
      for (int n = 0; n < kOutputs; ++n) {
        const int in_x = source(across, g.gathers, x + n * quarter, j);
        Acc<T> value[kVec];
        load_inside<kVec>(is_inside(in_x, args.in.width), row + in_x * steps.column, value);
#pragma unroll
        for (int v = 0; v < kVec; ++v) sums[n][v] += value[v] * weight[v];
      }
    }
  }
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kAnyBlock, kAnyBlocks)
    depthwise_any_outputs(const DepthwiseArgs<T> args, int64_t threads) {
  using A = Acc<T>;
  const auto& g = args.geometry;
  const auto& out = args.out;
  const int quarter = (out.width + kOutputs - 1) / kOutputs;
  const Steps in_steps = steps_of(args.in, g.channels_last), out_steps = steps_of(out, g.channels_last);
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kAnyBlock + threadIdx.x; at < threads;
       at += static_cast<int64_t>(gridDim.x) * kAnyBlock) {
    const Place place = place_of<kVec>(at, out.channels / kVec, out.height, quarter, g.channels_last);
    A sums[kOutputs][kVec] = {};
    const int first = g.gathers ? place.channel * args.filters_of_channel : place.channel;
    const int count = g.gathers ? args.filters_of_channel : 1;
    for (int filter = first; filter < first + count; ++filter) {
      const int channel = g.gathers ? filter : filter / args.filters_of_channel;
      const T* images = args.in.data + place.image * in_steps.image + channel * in_steps.channel;
      add_filter<T, kVec>(args, in_steps, images, filter, place.y, place.column, quarter, sums);
    }
    finish<T>(args, place.channel, sums, [&](int n) -> int64_t {
      const int x = place.column + n * quarter;
      if (x >= out.width) return -1;
      return place.image * out_steps.image + place.channel * out_steps.channel + place.y * out_steps.row +
             x * out_steps.column;
    });
  }
}

template <typename T, int kVec>
Status launch_any(const DepthwiseArgs<T>& args, const Launch& where) {
  const int64_t threads =
      args.images * (args.out.channels / kVec) * args.out.height * divide_up(args.out.width, kOutputs);
  return launch(where, depthwise_any_outputs<T, kVec>, blocks_for(divide_up(threads, kAnyBlock)), kAnyBlock, 0, args,
                threads);
}

}  // namespace

template <typename T>
Status depthwise_any(const DepthwiseArgs<T>& args, const Launch& where) {
  constexpr int kVec = kWidest<T>;
  const bool wide = args.geometry.channels_last && args.filters_of_channel == 1 && channels_are_aligned<kVec>(args);
  return wide ? launch_any<T, kVec>(args, where) : launch_any<T, 1>(args, where);
}

template Status depthwise_any(const DepthwiseArgs<float>&, const Launch&);
template Status depthwise_any(const DepthwiseArgs<double>&, const Launch&);
template Status depthwise_any(const DepthwiseArgs<BF16>&, const Launch&);
template Status depthwise_any(const DepthwiseArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu

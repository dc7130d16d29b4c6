// Weight gradient of a depthwise convolution for everything that has no tiles. A block sums four taps of some channels
// over its part of the pixels: a dy is read once for four taps, and each of them reads its own x. In channels_last the
// threads of a block are [pixels, channels], in planes they are pixels of one filter.
#include "cuda/depthwise_sums.cuh"

namespace tilewright::gpu {
namespace {

constexpr int kTapsOfThread = 4;

struct AnySumTiling {
  ChannelTiles channels;
  int64_t pixels, parts, items;
  int64_t tap_tiles, taps;
};

template <typename T, int kVec>
__device__ __forceinline__ void add_pixel(const DepthwiseWeightArgs<T>& args, int64_t image, int y, int x, int filter,
                                          int64_t first_tap, int64_t taps, Acc<T> (&sums)[(kTapsOfThread + 1) * kVec]) {
  using A = Acc<T>;
  const auto& g = args.geometry;
  const int channel = filter / args.filters_of_channel;
  const auto at = [&](const DepthwiseImages<const T>& images, int of, int row, int column) {
    if (g.channels_last) return ((image * images.height + row) * images.width + column) * images.channels + of;
    return ((image * images.channels + of) * images.height + row) * images.width + column;
  };
  A dy[kVec];
  load<kVec>(args.dy.data + at(args.dy, filter, y, x), dy);
#pragma unroll
  for (int t = 0; t < kTapsOfThread; ++t) {
    const auto tap = static_cast<int>(first_tap) + t;
    const int i = tap / g.kernel[1], j = tap - i * g.kernel[1];
    const int in_y = y * g.stride[0] - g.padding[0] + i * g.dilation[0];
    const int in_x = x * g.stride[1] - g.padding[1] + j * g.dilation[1];
    const bool inside = tap < taps && is_inside(in_y, args.x.height) && is_inside(in_x, args.x.width);
    A value[kVec];
    load_inside<kVec>(inside, args.x.data + at(args.x, channel, in_y, in_x), value);
#pragma unroll
    for (int v = 0; v < kVec; ++v) sums[t * kVec + v] += value[v] * dy[v];
  }
#pragma unroll
  for (int v = 0; v < kVec; ++v) sums[kTapsOfThread * kVec + v] += dy[v];
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kSumBlock)
    depthwise_any_weight(const DepthwiseWeightArgs<T> args, const AnySumTiling tiling) {
  using A = Acc<T>;
  const int lanes_log = tiling.channels.lanes_log, lanes = tiling.channels.lanes();
  for (int64_t item = blockIdx.x; item < tiling.items; item += gridDim.x) {
    const Quotient by_taps = divide(item, static_cast<int>(tiling.tap_tiles));
    const Quotient by_channels = divide(by_taps.whole, tiling.channels.count);
    const int64_t part = by_channels.whole, first_tap = int64_t{by_taps.rest} * kTapsOfThread;
    const int tile_filter = by_channels.rest * lanes * kVec;
    const int filter = tile_filter + (static_cast<int>(threadIdx.x) & (lanes - 1)) * kVec;
    A sums[(kTapsOfThread + 1) * kVec] = {};
    if (filter < args.dy.channels) {
      const Stretch stretch = stretch_of(tiling.pixels, part, tiling.parts);
      const int step = kSumBlock >> lanes_log;
      const int64_t first = stretch.begin + (static_cast<int>(threadIdx.x) >> lanes_log);
      Walk walk(first, step, args.dy.height, args.dy.width);
      for (int64_t pixel = first; pixel < stretch.end; pixel += step) {
        add_pixel<T, kVec>(args, walk.image, walk.row, walk.strip, filter, first_tap, tiling.taps, sums);
        walk.advance();
      }
    }
    sum_over_strips(sums, lanes_log, [&](int n, int lane, A sum) {
      const int to = tile_filter + lane * kVec + n % kVec, t = n / kVec;
      if (to >= args.dy.channels) return;
      const int64_t tap = t < kTapsOfThread ? first_tap + t : tiling.taps;
      if (t < kTapsOfThread ? tap < tiling.taps : first_tap == 0) partial(args, part, static_cast<int>(tap))[to] = sum;
    });
  }
}

template <typename T, int kVec>
Status launch_sums(const DepthwiseWeightArgs<T>& args, int64_t parts, const Launch& where) {
  const auto& g = args.geometry;
  AnySumTiling tiling;
  tiling.channels = g.channels_last
                        ? cut_into_channel_tiles(args.dy.channels / kVec, static_cast<int>(kVec * sizeof(T)))
                        : ChannelTiles{0, args.dy.channels};
  tiling.pixels = args.images * args.dy.height * args.dy.width;
  tiling.parts = parts;
  tiling.taps = int64_t{g.kernel[0]} * g.kernel[1];
  tiling.tap_tiles = divide_up(tiling.taps, kTapsOfThread);
  tiling.items = parts * tiling.channels.count * tiling.tap_tiles;
  return launch(where, depthwise_any_weight<T, kVec>, blocks_for(tiling.items), kSumBlock,
                sum_bytes<Acc<T>>((kTapsOfThread + 1) * kVec, tiling.channels.lanes()), args, tiling);
}

}  // namespace

template <typename T>
Status depthwise_any_weights(const DepthwiseWeightArgs<T>& args, int64_t parts, const Launch& where) {
  constexpr int kVec = kWidest<T>;
  const int64_t channels = args.dy.channels;
  const bool wide = args.geometry.channels_last && args.filters_of_channel == 1 &&
                    is_aligned<kVec>(args.x.data, channels) && is_aligned<kVec>(args.dy.data, channels);
  return wide ? launch_sums<T, kVec>(args, parts, where) : launch_sums<T, 1>(args, parts, where);
}

template Status depthwise_any_weights(const DepthwiseWeightArgs<float>&, int64_t, const Launch&);
template Status depthwise_any_weights(const DepthwiseWeightArgs<double>&, int64_t, const Launch&);
template Status depthwise_any_weights(const DepthwiseWeightArgs<BF16>&, int64_t, const Launch&);
template Status depthwise_any_weights(const DepthwiseWeightArgs<F16>&, int64_t, const Launch&);

}  // namespace tilewright::gpu

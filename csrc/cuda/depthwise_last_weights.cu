// Weight gradient of a depthwise convolution, channels_last: dweight[c, i, j] = sum over n, y, x of dy[n, y, x, c] *
// x[n, y * s - p + i * d, ...]. A thread owns one access of channels and keeps the sums of its tap rows in registers
// while it walks over strips of P pixels of dy; a row of the window is read once for all taps of a row:
//
//   dy     o o o o            P = 4, K = 3: 4 accesses
//   x      o o o o o o        (P - 1) * S + K accesses for each tap row, 3 P products in all
//
// 5x5 and 7x7 have too many sums for one thread: a block takes three tap rows, its neighbours the others.
//
// A block adds its threads' sums and leaves one partial row of each tap; depthwise.cu adds those.
#include "cuda/depthwise_sums.cuh"

namespace tilewright::gpu {
namespace {

template <typename T, int kKernelIn, int kStrideIn>
struct SumTile {
  static constexpr int kKernel = kKernelIn, kStride = kStrideIn;
  static constexpr int kVec = 4, kColumns = kKernel == 3 ? 4 : 2;
  static constexpr int kTapRows = 3, kPasses = (kKernel + kTapRows - 1) / kTapRows;
  static constexpr int kWindow = (kColumns - 1) * kStride + kKernel, kValues = kKernel * kVec;
};

struct SumTiling {
  ChannelTiles channels;
  Strips columns;
  int64_t strips, parts;
};

template <typename T, typename Tile>
__device__ __forceinline__ void add_strip(const DepthwiseWeightArgs<T>& args, int64_t image, int y, int x0, int step,
                                          int channel, int first_tap_row, Acc<T> (&sums)[Tile::kTapRows][Tile::kValues],
                                          Acc<T> (&bias)[Tile::kVec]) {
  using A = Acc<T>;
  constexpr int kVec = Tile::kVec;
  const auto& g = args.geometry;
  const int dilation = computed_anew(g.dilation[0]);
  step = computed_anew(step);
  A dy[Tile::kColumns][kVec];
  const T* dy_row = args.dy.data + (image * args.dy.height + y) * args.dy.width * args.dy.channels + channel;
#pragma unroll
  for (int p = 0; p < Tile::kColumns; ++p) {
    const int x = x0 + p * step;
    load_inside<kVec>(x < args.dy.width, dy_row + static_cast<int64_t>(x) * args.dy.channels, dy[p]);
#pragma unroll
    for (int v = 0; v < kVec; ++v) bias[v] += dy[p][v];
  }
  const int in_x = x0 * Tile::kStride - g.padding[1];
  const int in_y = y * Tile::kStride - g.padding[0] + first_tap_row * dilation;
  const int64_t pixel = static_cast<int64_t>(step) * args.x.channels;
  const int64_t line = static_cast<int64_t>(dilation) * args.x.width * args.x.channels;
  const T* row = args.x.data + ((image * args.x.height + in_y) * args.x.width + in_x) * args.x.channels + channel;
#pragma unroll
  for (int i = 0; i < Tile::kTapRows; ++i) {
    const bool row_inside = is_inside(in_y + i * dilation, args.x.height);
#pragma unroll
    for (int q = 0; q < Tile::kWindow; ++q) {
      A x[kVec];
      load_inside<kVec>(row_inside && is_inside(in_x + q * step, args.x.width), row + q * pixel, x);
#pragma unroll
      for (int p = 0; p < Tile::kColumns; ++p) {
        const int j = q - p * Tile::kStride;
        if (j < 0 || j >= Tile::kKernel) continue;
        if (!(p == 0 || x0 + p * step < args.dy.width)) continue;  // 0 times Inf would be NaN
#pragma unroll
        for (int v = 0; v < kVec; ++v) sums[i][j * kVec + v] += x[v] * dy[p][v];
      }
    }
    row += line;
  }
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(kSumBlock, 2)
    depthwise_last_weight(const DepthwiseWeightArgs<T> args, const SumTiling tiling) {
  using A = Acc<T>;
  constexpr int kVec = Tile::kVec;
  const int lanes_log = tiling.channels.lanes_log, lanes = tiling.channels.lanes();
  // Blocks of the same pixels follow each other.
  const int pass = static_cast<int>(blockIdx.x % Tile::kPasses), first_tap_row = pass * Tile::kTapRows;
  const int tile = static_cast<int>(blockIdx.x / Tile::kPasses % tiling.channels.count);
  const int64_t part = blockIdx.x / Tile::kPasses / tiling.channels.count;
  const int tile_channel = tile * lanes * kVec;
  const int channel = tile_channel + (static_cast<int>(threadIdx.x) & (lanes - 1)) * kVec;
  A sums[Tile::kTapRows][Tile::kValues] = {};
  A bias[kVec] = {};
  if (channel < args.dy.channels) {
    const Stretch stretch = stretch_of(tiling.strips, part, tiling.parts);
    const int step = kSumBlock >> lanes_log;
    const int64_t first = stretch.begin + (static_cast<int>(threadIdx.x) >> lanes_log);
    Walk walk(first, step, args.dy.height, tiling.columns.count());
    for (int64_t strip = first; strip < stretch.end; strip += step) {
      add_strip<T, Tile>(args, walk.image, walk.row, tiling.columns.at(walk.strip), tiling.columns.step, channel,
                         first_tap_row, sums, bias);
      walk.advance();
    }
  }
  const auto write = [&](int tap, int v, int lane, A sum) {
    const int to = tile_channel + lane * kVec + v;
    if (to < args.dy.channels) partial(args, part, tap)[to] = sum;
  };
#pragma unroll
  for (int i = 0; i < Tile::kTapRows; ++i) {
    if (first_tap_row + i >= Tile::kKernel) continue;  // the same for the whole block
    sum_over_strips(sums[i], lanes_log, [&](int n, int lane, A sum) {
      write((first_tap_row + i) * Tile::kKernel + n / kVec, n % kVec, lane, sum);
    });
  }
  if (first_tap_row == 0) {
    sum_over_strips(bias, lanes_log,
                    [&](int n, int lane, A sum) { write(Tile::kKernel * Tile::kKernel, n, lane, sum); });
  }
}

template <typename T, typename Tile>
Status launch_sums(const DepthwiseWeightArgs<T>& args, int64_t parts, const Launch& where) {
  SumTiling tiling;
  tiling.channels =
      cut_into_channel_tiles(divide_up(args.dy.channels, Tile::kVec), static_cast<int>(Tile::kVec * sizeof(T)));
  tiling.columns = cut_into_strips(args.dy.width, args.geometry.dilation[1], Tile::kColumns);
  tiling.strips = args.images * args.dy.height * tiling.columns.count();
  tiling.parts = parts;
  const int64_t blocks = parts * tiling.channels.count * Tile::kPasses;
  return launch(where, depthwise_last_weight<T, Tile>, dim3(static_cast<unsigned>(blocks)), kSumBlock,
                sum_bytes<Acc<T>>(Tile::kValues, tiling.channels.lanes()), args, tiling);
}

}  // namespace

template <typename T>
Status depthwise_last_weights(const DepthwiseWeightArgs<T>& args, int64_t parts, const Launch& where) {
  return for_kernel_size(args.geometry.kernel[0], [&]<int kKernel>() {
    if (args.geometry.stride[0] == 1) return launch_sums<T, SumTile<T, kKernel, 1>>(args, parts, where);
    return launch_sums<T, SumTile<T, kKernel, 2>>(args, parts, where);
  });
}

template Status depthwise_last_weights(const DepthwiseWeightArgs<float>&, int64_t, const Launch&);
template Status depthwise_last_weights(const DepthwiseWeightArgs<BF16>&, int64_t, const Launch&);
template Status depthwise_last_weights(const DepthwiseWeightArgs<F16>&, int64_t, const Launch&);

}  // namespace tilewright::gpu

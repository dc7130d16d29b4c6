// Depthwise convolution of channels_last images by tiles in registers. A thread owns one access of channels (V) and R x
// P outputs; a row of the window is read once and serves every output and tap that meets it:
//
//   S = 1, K = 3, P = 4, R = 2                       one warp: 128 bytes of channels x neighbouring strips
//     inputs   o o o o o o   row 0   taps of row 0 for output row 0
//              o o o o o o   row 1   rows 1, 0     for output rows 0, 1
//              o o o o o o   row 2   rows 2, 1
//              o o o o o o   row 3   row 2         for output row 1
//
// 24 accesses for 8 outputs where single outputs would need 72 (P = 2 where V = 8: 16 for 4); from memory each input
// comes once, the caches serve the rest. With dilation d a strip has every d-th output, so its windows overlap in the
// same way. The weights of the block's channels are in shared memory, in the accumulation type.
#include "cuda/depthwise_last.cuh"

namespace tilewright::gpu {
namespace {

template <typename T, int kKernelIn, int kStrideIn>
struct LastTile {
  static constexpr int kKernel = kKernelIn, kStride = kStrideIn;
  static constexpr int kVec = kTileVec<T, kKernel>, kColumns = kVec == 8 ? 2 : 4, kRows = kStride == 1 ? 2 : 1;
  static constexpr int kWindow = (kColumns - 1) * kStride + kKernel, kReach = (kRows - 1) * kStride + kKernel;
};

struct LastTiling {
  ChannelTiles channels;
  Strips rows, columns;
  int64_t strips;
};

// Adds what one row of the window gives to all outputs of the tile. Row `reach` is tap row reach - k * S of output row
// k.
template <typename Tile, typename A>
__device__ __forceinline__ void add_row(const A (&x)[Tile::kWindow][Tile::kVec], int reach, const A* weights, int pitch,
                                        A (&sums)[Tile::kRows * Tile::kColumns][Tile::kVec]) {
#pragma unroll
  for (int k = 0; k < Tile::kRows; ++k) {
    const int i = reach - k * Tile::kStride;
    if (i < 0 || i >= Tile::kKernel) continue;
#pragma unroll
    for (int j = 0; j < Tile::kKernel; ++j) {
      A weight[Tile::kVec];
      read_shared(weights + (i * Tile::kKernel + j) * pitch, weight);
#pragma unroll
      for (int p = 0; p < Tile::kColumns; ++p) {
#pragma unroll
        for (int v = 0; v < Tile::kVec; ++v) {
          sums[k * Tile::kColumns + p][v] += x[p * Tile::kStride + j][v] * weight[v];
        }
      }
    }
  }
}

template <typename T, typename Tile>
__device__ __forceinline__ void last_tile(const DepthwiseArgs<T>& args, const LastTiling& tiling, int channel,
                                          int64_t strip, const Acc<T>* weights, int pitch) {
  using A = Acc<T>;
  constexpr int kVec = Tile::kVec;
  const auto& in = args.in;
  const auto& out = args.out;
  const bool works = strip < tiling.strips && channel < out.channels;
  const Quotient by_columns = divide(works ? strip : 0, tiling.columns.count());
  const Quotient by_rows = divide(by_columns.whole, tiling.rows.count());
  const int64_t image = by_rows.whole;
  const int x0 = tiling.columns.at(by_columns.rest), y0 = tiling.rows.at(by_rows.rest);
  const int step_x = tiling.columns.step, step_y = tiling.rows.step;
  const int in_x = x0 * Tile::kStride - args.geometry.padding[1], in_y = y0 * Tile::kStride - args.geometry.padding[0];

  A sums[Tile::kRows * Tile::kColumns][kVec] = {};
  const int64_t pixel = static_cast<int64_t>(step_x) * in.channels;
  const T* row = in.data + ((image * in.height + in_y) * in.width + in_x) * in.channels + channel;
#pragma unroll(Tile::kKernel == 3 ? 2 : 1)  // more at once would hold several windows in registers
  for (int reach = 0; reach < Tile::kReach; ++reach) {
    const bool row_inside = works && is_inside(in_y + reach * step_y, in.height);
    A x[Tile::kWindow][kVec];
#pragma unroll
    for (int q = 0; q < Tile::kWindow; ++q) {
      load_inside<kVec>(row_inside && is_inside(in_x + q * step_x, in.width), row + q * pixel, x[q]);
    }
    row += static_cast<int64_t>(step_y) * in.width * in.channels;
    add_row<Tile>(x, reach, weights, pitch, sums);
  }
  finish<T>(args, works ? channel : out.channels, sums, [&](int k) -> int64_t {
    const int y = y0 + k / Tile::kColumns * step_y, x = x0 + k % Tile::kColumns * step_x;
    if (!works || y >= out.height || x >= out.width) return -1;
    return ((image * out.height + y) * out.width + x) * out.channels + channel;
  });
}

template <typename T, typename TileIn>
struct Tiles : LastTiling {
  using Tile = TileIn;
  __device__ __forceinline__ void operator()(const DepthwiseArgs<T>& args, int channel, int64_t strip,
                                             const Acc<T>* weights, int pitch) const {
    last_tile<T, Tile>(args, *this, channel, strip, weights, pitch);
  }
};

template <typename T, typename Tile>
Status launch_tiles(const DepthwiseArgs<T>& args, const Launch& where) {
  Tiles<T, Tile> tiles;
  tiles.channels = channel_tiles<T, Tile>(args);
  tiles.rows = cut_into_strips(args.out.height, args.geometry.dilation[0], Tile::kRows);
  tiles.columns = cut_into_strips(args.out.width, args.geometry.dilation[1], Tile::kColumns);
  tiles.strips = args.images * tiles.rows.count() * tiles.columns.count();
  return launch_strips(args, tiles, where);
}

}  // namespace

template <typename T>
Status depthwise_last_tiles(const DepthwiseArgs<T>& args, const Launch& where) {
  return for_kernel_size(args.geometry.kernel[0], [&]<int kKernel>() {
    if (args.geometry.stride[0] == 1) return launch_tiles<T, LastTile<T, kKernel, 1>>(args, where);
    return launch_tiles<T, LastTile<T, kKernel, 2>>(args, where);
  });
}

template Status depthwise_last_tiles(const DepthwiseArgs<float>&, const Launch&);
template Status depthwise_last_tiles(const DepthwiseArgs<BF16>&, const Launch&);
template Status depthwise_last_tiles(const DepthwiseArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu

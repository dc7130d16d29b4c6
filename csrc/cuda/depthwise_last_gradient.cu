// Data gradient of a depthwise convolution with stride 2, channels_last (stride 1 is a forward with the kernel turned
// round). A cell is the 2 x 2 pixels of the input whose padded coordinates are (2a, 2b) ... (2a + 1, 2b + 1). Which
// taps reach a pixel depends on its place in the cell alone, so that no tap is tested and no zero multiplied:
//
//   K = 3      taps (row)                      T = ceil(K / 2) = 2
//   row 2a     0 from dy row a, 2 from a - 1   a thread owns one access of channels and P cells side by side;
//   row 2a + 1 1 from dy row a                 it reads T x (P + T - 1) accesses of dy for its 4 P outputs
#include "cuda/depthwise_last.cuh"

namespace tilewright::gpu {
namespace {

template <typename T, int kKernelIn>
struct CellTile {
  static constexpr int kKernel = kKernelIn, kVec = kTileVec<T, kKernel>, kCells = kVec == 8 ? 1 : 2;
  static constexpr int kReach = (kKernel + 1) / 2, kWindow = kCells + kReach - 1, kColumns = 2 * kCells;
};

struct CellTiling {
  ChannelTiles channels;
  int first_y, first_x;  // the first cell's pixel, 0 or -1
  int rows, columns;     // cells, and strips of cells
  int64_t strips;
};

// Adds what row a - t of dy gives to the two rows of the cells: taps 2t and 2t + 1, from the window's columns.
template <typename Tile, typename A>
__device__ __forceinline__ void add_row(const A (&dy)[Tile::kWindow][Tile::kVec], int t, const A* weights, int pitch,
                                        A (&sums)[2 * Tile::kColumns][Tile::kVec]) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (2 * t + k >= Tile::kKernel) continue;
#pragma unroll
    for (int j = 0; j < Tile::kKernel; ++j) {
      A weight[Tile::kVec];
      read_shared(weights + ((2 * t + k) * Tile::kKernel + j) * pitch, weight);
#pragma unroll
      for (int cell = 0; cell < Tile::kCells; ++cell) {
        // Tap j reaches column j % 2 of a cell from dy column b - j / 2; the window starts at b - (T - 1).
        const int q = cell + Tile::kReach - 1 - j / 2, to = k * Tile::kColumns + 2 * cell + j % 2;
#pragma unroll
        for (int v = 0; v < Tile::kVec; ++v) sums[to][v] += dy[q][v] * weight[v];
      }
    }
  }
}

template <typename T, typename Tile>
__device__ __forceinline__ void cells_of_strip(const DepthwiseArgs<T>& args, const CellTiling& tiling, int channel,
                                               int64_t strip, const Acc<T>* weights, int pitch) {
  using A = Acc<T>;
  constexpr int kVec = Tile::kVec;
  const auto& in = args.in;
  const auto& out = args.out;
  const bool works = strip < tiling.strips && channel < out.channels;
  const Quotient by_columns = divide(works ? strip : 0, tiling.columns);
  const Quotient by_rows = divide(by_columns.whole, tiling.rows);
  const int64_t image = by_rows.whole;
  const int y0 = tiling.first_y + 2 * by_rows.rest, x0 = tiling.first_x + Tile::kColumns * by_columns.rest;
  const int a = (y0 + args.geometry.padding[0]) / 2, b = (x0 + args.geometry.padding[1]) / 2;
  const int in_x = b - (Tile::kReach - 1);

  A sums[2 * Tile::kColumns][kVec] = {};
  const int64_t line = static_cast<int64_t>(in.width) * in.channels;
  const T* row = in.data + (image * in.height + a) * line + static_cast<int64_t>(in_x) * in.channels + channel;
#pragma unroll(Tile::kKernel == 3 ? Tile::kReach : 1)
  for (int t = 0; t < Tile::kReach; ++t) {
    const bool row_inside = works && is_inside(a - t, in.height);
    A dy[Tile::kWindow][kVec];
#pragma unroll
    for (int q = 0; q < Tile::kWindow; ++q) {
      load_inside<kVec>(row_inside && is_inside(in_x + q, in.width), row + q * static_cast<int64_t>(in.channels),
                        dy[q]);
    }
    row -= line;
    add_row<Tile>(dy, t, weights, pitch, sums);
  }
  finish<T>(args, works ? channel : out.channels, sums, [&](int k) -> int64_t {
    const int y = y0 + k / Tile::kColumns, x = x0 + k % Tile::kColumns;
    if (!works || !is_inside(y, out.height) || !is_inside(x, out.width)) return -1;
    return ((image * out.height + y) * out.width + x) * out.channels + channel;
  });
}

template <typename T, typename TileIn>
struct Cells : CellTiling {
  using Tile = TileIn;
  __device__ __forceinline__ void operator()(const DepthwiseArgs<T>& args, int channel, int64_t strip,
                                             const Acc<T>* weights, int pitch) const {
    cells_of_strip<T, Tile>(args, *this, channel, strip, weights, pitch);
  }
};

template <typename T, typename Tile>
Status launch_cells(const DepthwiseArgs<T>& args, const Launch& where) {
  Cells<T, Tile> cells;
  cells.channels = channel_tiles<T, Tile>(args);
  cells.first_y = -(args.geometry.padding[0] % 2);
  cells.first_x = -(args.geometry.padding[1] % 2);
  cells.rows = (args.out.height - cells.first_y + 1) / 2;
  cells.columns = (args.out.width - cells.first_x + Tile::kColumns - 1) / Tile::kColumns;
  cells.strips = args.images * cells.rows * cells.columns;
  return launch_strips(args, cells, where);
}

}  // namespace

template <typename T>
Status depthwise_last_cells(const DepthwiseArgs<T>& args, const Launch& where) {
  return for_kernel_size(args.geometry.kernel[0],
                         [&]<int kKernel>() { return launch_cells<T, CellTile<T, kKernel>>(args, where); });
}

template Status depthwise_last_cells(const DepthwiseArgs<float>&, const Launch&);
template Status depthwise_last_cells(const DepthwiseArgs<BF16>&, const Launch&);
template Status depthwise_last_cells(const DepthwiseArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu

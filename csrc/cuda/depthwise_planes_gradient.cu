// Data gradient of a depthwise convolution with stride 2, planes: the cells of depthwise_last_gradient.cu, with
// neighbouring threads on neighbouring cells and kCells of them, one below the other, in a thread.
#include "cuda/depthwise.cuh"

namespace tilewright::gpu {
namespace {

constexpr int kCells = 4, kCellBlock = 128;

struct PlaneCellTiling {
  int first_y, first_x;  // the first cell's pixel, 0 or -1
  int rows, columns;     // strips of cells, and cells
  int64_t threads;
};

// The same number, of which the compiler no longer knows that it is the same in every turn of a loop: what is computed
// from it is computed anew and not kept in registers.
__device__ __forceinline__ int64_t computed_anew(int64_t x) {
#if defined(__CUDACC__)
  asm volatile("" : "+l"(x));
#endif
  return x;
}

// The weights of one filter in registers.
template <int kKernel, typename T>
__device__ __forceinline__ void read_weights(const DepthwiseWeight<T>& weight, int64_t filter,
                                             Acc<T> (&out)[kKernel][kKernel]) {
  const T* from = weight.data + filter * weight.filter;
  const int64_t row = computed_anew(weight.row), col = computed_anew(weight.col);
#pragma unroll
  for (int i = 0; i < kKernel; ++i) {
#pragma unroll
    for (int j = 0; j < kKernel; ++j) out[i][j] = widen(from[i * row + j * col]);
  }
}

// sums[2 * cell + k][column of the cell]; dy is the plane of one filter, (a, b) the first cell.
template <typename T, int kKernel>
__device__ __forceinline__ void add_filter(const DepthwiseImages<const T>& in, const T* dy, int a, int b,
                                           const DepthwiseWeight<T>& weight, int64_t filter,
                                           Acc<T> (&sums)[2 * kCells][2]) {
  using A = Acc<T>;
  constexpr int kReach = (kKernel + 1) / 2;
  A taps[kKernel][kKernel];
  read_weights<kKernel>(weight, filter, taps);
  const int64_t line = computed_anew(in.width);
  const int y0 = static_cast<int>(computed_anew(a - (kReach - 1)));
  const T* row = dy + y0 * line + b;
#pragma unroll
  for (int r = 0; r < kCells + kReach - 1; ++r) {  // row a - (T - 1) + r of dy
    const int y = y0 + r;
#pragma unroll
    for (int u = 0; u < kReach; ++u) {  // column b - u: taps 2u and 2u + 1
      A value[1];
      load_inside<1>(is_inside(y, in.height) && is_inside(b - u, in.width), row - u, value);
#pragma unroll
      for (int t = 0; t < kReach; ++t) {  // taps 2t and 2t + 1 of the cell t rows further down
        const int cell = r - (kReach - 1) + t;
        if (cell < 0 || cell >= kCells) continue;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int i = 2 * t + k / 2, j = 2 * u + k % 2;
          if (i < kKernel && j < kKernel) sums[2 * cell + k / 2][k % 2] += value[0] * taps[i][j];
        }
      }
    }
    row += line;
  }
}

template <typename T, int kKernel>
__global__ void __launch_bounds__(kCellBlock, kKernel == 7 ? 3 : 4)
    depthwise_plane_cell(const DepthwiseArgs<T> args, const PlaneCellTiling tiling) {
  using A = Acc<T>;
  const auto& in = args.in;
  const auto& out = args.out;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kCellBlock + threadIdx.x; at < tiling.threads;
       at += static_cast<int64_t>(gridDim.x) * kCellBlock) {
    const Quotient by_columns = divide(at, tiling.columns);
    const Quotient by_rows = divide(by_columns.whole, tiling.rows);
    const Quotient by_channels = divide(by_rows.whole, out.channels);
    const int y0 = tiling.first_y + 2 * kCells * by_rows.rest, x0 = tiling.first_x + 2 * by_columns.rest;
    const int a = (y0 + args.geometry.padding[0]) / 2, b = (x0 + args.geometry.padding[1]) / 2;
    A sums[2 * kCells][2] = {};
    const int first = by_channels.rest * args.filters_of_channel;
    for (int filter = first; filter < first + args.filters_of_channel; ++filter) {
      const T* dy = in.data + (by_channels.whole * in.channels + filter) * in.height * in.width;
      add_filter<T, kKernel>(in, dy, a, b, args.weight, filter, sums);
    }
#pragma unroll
    for (int k = 0; k < 2 * kCells; ++k) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const int y = y0 + k, x = x0 + column;
        if (!is_inside(y, out.height) || !is_inside(x, out.width)) continue;
        out.data[(by_rows.whole * out.height + y) * out.width + x] = narrow<T>(sums[k][column]);
      }
    }
  }
}

template <typename T, int kKernel>
Status launch_cells(const DepthwiseArgs<T>& args, const Launch& where) {
  const auto& padding = args.geometry.padding;
  PlaneCellTiling tiling;
  tiling.first_y = -(padding[0] % 2);
  tiling.first_x = -(padding[1] % 2);
  tiling.rows = (args.out.height - tiling.first_y + 2 * kCells - 1) / (2 * kCells);
  tiling.columns = (args.out.width - tiling.first_x + 1) / 2;
  tiling.threads = args.images * args.out.channels * tiling.rows * tiling.columns;
  return launch(where, depthwise_plane_cell<T, kKernel>, blocks_for(divide_up(tiling.threads, kCellBlock)), kCellBlock,
                0, args, tiling);
}

}  // namespace

template <typename T>
Status depthwise_plane_cells(const DepthwiseArgs<T>& args, const Launch& where) {
  return for_kernel_size(args.geometry.kernel[0], [&]<int kKernel>() { return launch_cells<T, kKernel>(args, where); });
}

template Status depthwise_plane_cells(const DepthwiseArgs<float>&, const Launch&);
template Status depthwise_plane_cells(const DepthwiseArgs<BF16>&, const Launch&);
template Status depthwise_plane_cells(const DepthwiseArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu

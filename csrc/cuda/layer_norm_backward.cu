#include "cuda/layer_norm_backward.cuh"

#include "cuda/column_sums.cuh"

namespace tilewright::gpu {
namespace {

// The partial rows of dweight and dbias straight from memory, for rows too long for the registers of one block.
template <typename T>
__global__ void __launch_bounds__(kColumns* kLanes) layer_norm_column_rows(const LayerNormBackwardArgs<T> args) {
  using A = Acc<T>;
  const int lane = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x % kColumns;
  const int64_t part = blockIdx.y, parts = gridDim.y;
  A totals[2] = {A(0), A(0)};
  if (column < args.cols) {
    for (int64_t row = part * kLanes + lane; row < args.rows; row += parts * kLanes) {
      A xhat[1], dy[1];
      expand(read<1>(args, row, column), statistics_of(args, row), xhat, dy);
      totals[0] += dy[0] * xhat[0];
      totals[1] += dy[0];
    }
  }
#pragma unroll  // or totals would be indexed at run time and live in local memory
  for (int which = 0; which < 2; ++which) {
    const A sum = sum_over_lanes(totals[which]);
    if (lane == 0 && column < args.cols) args.partials[(which * parts + part) * args.cols + column] = sum;
  }
}

}  // namespace

int64_t layer_norm_partial_rows(int64_t rows, int64_t cols) {
  // Two blocks on each multiprocessor of an H100 or H200, and at least 4096 elements for each.
  constexpr int64_t kMost = 264, kMinElements = 4096;
  const int64_t rows_each = std::max(int64_t{1}, kMinElements / std::max(int64_t{1}, cols));
  return std::max(int64_t{1}, std::min(kMost, divide_up(rows, rows_each)));
}

template <typename T>
Status layer_norm_column_sums(const LayerNormBackwardArgs<T>& args, const Launch& where) {
  // Eight blocks on each multiprocessor of an H100 or H200, and at least four rows for each lane.
  constexpr int64_t kBlocks = 1056, kMinRows = 4 * kLanes;
  const int64_t strips = divide_up(args.cols, kColumns);
  const int64_t parts = std::min(
      {layer_norm_partial_rows(args.rows, args.cols), divide_up(kBlocks, strips), divide_up(args.rows, kMinRows)});
  const Status status =
      launch(where, layer_norm_column_rows<T>, columns_grid(args.cols, parts), kColumns * kLanes, 0, args);
  return status != 0 ? status : layer_norm_add_partials(args, parts, where);
}

template <typename T>
Status layer_norm_add_partials(const LayerNormBackwardArgs<T>& args, int64_t parts, const Launch& where) {
  const ColumnSumsArgs<T> sums{args.partials, parts, args.cols, args.dweight, args.dbias, args.wide_gradients};
  return launch(where, add_partials<T>, columns_grid(args.cols, 2), kColumns * kLanes, 0, sums);
}

template <typename T>
Status layer_norm_backward(const LayerNormBackwardArgs<T>& args, const Launch& where) {
  return launch_layer_norm_backward(args, MatrixGradient<T>{args.dx}, where);
}

#define TILEWRIGHT_INSTANTIATE(T)                                                                   \
  template Status layer_norm_column_sums(const LayerNormBackwardArgs<T>&, const Launch&);           \
  template Status layer_norm_add_partials(const LayerNormBackwardArgs<T>&, int64_t, const Launch&); \
  template Status layer_norm_backward(const LayerNormBackwardArgs<T>&, const Launch&);
TILEWRIGHT_INSTANTIATE(float)
TILEWRIGHT_INSTANTIATE(double)
TILEWRIGHT_INSTANTIATE(BF16)
TILEWRIGHT_INSTANTIATE(F16)
#undef TILEWRIGHT_INSTANTIATE

}  // namespace tilewright::gpu

// dropout_add backward with a bias: two launches. Blocks walk over the rows of a strip of columns, write dx, and keep
// the strip's sums in registers, of which each block leaves one partial row; a second launch adds the partial rows in a
// fixed order.
//
//   strip     0                    | 1               | ...       blockIdx.x: `width` accesses of kVec columns
//   rows      part, R * parts further on, ...                    blockIdx.y: R = 256 / width rows at a time
#include <algorithm>

#include "cuda/column_sums.cuh"
#include "cuda/elementwise.cuh"
#include "cuda/keep.cuh"
#include "cuda/row_tile.cuh"

namespace tilewright::gpu {
namespace {

constexpr int kBiasBlock = 256, kRowsInFlight = 4;

template <typename T, int kVec>
__global__ void __launch_bounds__(kBiasBlock, 2) dropout_bias_rows(const DropoutBiasBackwardArgs<T> args, int width) {
  using A = Acc<T>;
  __shared__ A of_row[kBiasBlock][kVec];
  const Keep<A> keep(args.dropout);
  const int access = static_cast<int>(threadIdx.x) % width, lane = static_cast<int>(threadIdx.x) / width;
  const int lanes = kBiasBlock / width;
  const int64_t parts = gridDim.y, step = parts * lanes;
  for (int64_t strip = blockIdx.x; strip * width * kVec < args.cols; strip += gridDim.x) {
    const int64_t column = (strip * width + access) * kVec;
    const bool inside = column < args.cols;
    A totals[kVec] = {};
    for (int64_t row = static_cast<int64_t>(blockIdx.y) * lanes + lane; inside && row < args.rows;
         row += step * kRowsInFlight) {
      Pack<T, kVec> dy[kRowsInFlight];
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) {
        if (row + r * step >= args.rows) continue;
        dy[r] = *reinterpret_cast<const Pack<T, kVec>*>(args.dy + (row + r * step) * args.cols + column);
      }
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) {
        if (row + r * step >= args.rows) continue;
        const int64_t first = (row + r * step) * args.cols + column;
        A dx[kVec];
        keep.factors(first, dx);
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          dx[i] *= widen(dy[r].value[i]);
          totals[i] += dx[i];
        }
        if (args.dx != nullptr) store<kVec>(args.dx + first, dx);
      }
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) of_row[threadIdx.x][i] = totals[i];
    __syncthreads();
    if (lane == 0 && inside) {
      for (int other = 1; other < lanes; ++other) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) totals[i] += of_row[other * width + access][i];
      }
#pragma unroll
      for (int i = 0; i < kVec; ++i) args.partials[blockIdx.y * args.cols + column + i] = totals[i];
    }
    __syncthreads();
  }
}

template <typename T, int kVec>
Status launch_rows(const DropoutBiasBackwardArgs<T>& args, const Launch& where) {
  const int64_t accesses = args.cols / kVec;
  const int width = accesses <= 8 ? 8 : accesses <= 16 ? 16 : 32;
  const dim3 grid(static_cast<unsigned>(std::min(divide_up(accesses, width), kMaxBlocks)),
                  static_cast<unsigned>(dropout_bias_partial_rows(args.rows, args.cols)));
  return launch(where, dropout_bias_rows<T, kVec>, grid, kBiasBlock, 0, args, width);
}

}  // namespace

int64_t dropout_bias_partial_rows(int64_t rows, int64_t cols) {
  // Four blocks on each multiprocessor of an H100 or H200, and at least 32 rows for each.
  constexpr int64_t kBlocks = 528, kStrip = 256, kMinRows = 32;
  return std::max(int64_t{1}, std::min(divide_up(kBlocks, divide_up(cols, kStrip)), divide_up(rows, kMinRows)));
}

template <typename T>
Status dropout_bias_backward(const DropoutBiasBackwardArgs<T>& args, const Launch& where) {
  constexpr int kVec = kWidest<T>;
  const bool aligned = is_aligned<kVec>(args.dy, args.cols) && is_aligned<kVec>(args.dx, args.cols);
  const Status status = aligned ? launch_rows<T, kVec>(args, where) : launch_rows<T, 1>(args, where);
  if (status != 0) return status;
  const ColumnSumsArgs<T> sums{
      args.partials, dropout_bias_partial_rows(args.rows, args.cols), args.cols, args.dbias, nullptr, false};
  return launch(where, add_partials<T>, columns_grid(args.cols, 1), kColumns * kLanes, 0, sums);
}

template Status dropout_bias_backward(const DropoutBiasBackwardArgs<float>&, const Launch&);
template Status dropout_bias_backward(const DropoutBiasBackwardArgs<double>&, const Launch&);
template Status dropout_bias_backward(const DropoutBiasBackwardArgs<BF16>&, const Launch&);
template Status dropout_bias_backward(const DropoutBiasBackwardArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu

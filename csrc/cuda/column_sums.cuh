// Sums over rows in two stages and a fixed order: partial rows [sums, parts, cols] by whoever reads the rows, and here
// their sum.
#pragma once
#include "cuda/launch.cuh"
#include "cuda/vec.cuh"

namespace tilewright::gpu {

// A block of 32 columns by 8 rows.
constexpr int kColumns = 32, kLanes = 8;

inline dim3 columns_grid(int64_t cols, int64_t y) {
  return dim3(static_cast<unsigned>(divide_up(cols, kColumns)), static_cast<unsigned>(y));
}

// Adds the lanes of each column in order; the result is lane 0's.
template <typename A>
__device__ __forceinline__ A sum_over_lanes(A value) {
  __shared__ A of_lane[kLanes][kColumns];
  const int column = static_cast<int>(threadIdx.x) % kColumns, lane = static_cast<int>(threadIdx.x) / kColumns;
  of_lane[lane][column] = value;
  __syncthreads();
  A sum = A(0);
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sum += of_lane[i][column];
  }
  __syncthreads();
  return sum;
}

template <typename T>
struct ColumnSumsArgs {
  const Acc<T>* partials;  // [2, parts, cols]; [1, parts, cols] with a grid of one row of blocks
  int64_t parts, cols;
  void *first, *second;  // [cols] in T, or in Acc<T> where wide; null: not wanted
  bool wide;
};

// The result in row blockIdx.y of the grid is `first` or `second`.
template <typename T>
__global__ void __launch_bounds__(kColumns* kLanes) add_partials(const ColumnSumsArgs<T> args) {
  using A = Acc<T>;
  const int lane = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x % kColumns;
  const A* partials = args.partials + blockIdx.y * args.parts * args.cols;
  A sum = A(0);
  if (column < args.cols) {
    for (int64_t part = lane; part < args.parts; part += kLanes) sum += partials[part * args.cols + column];
  }
  sum = sum_over_lanes(sum);
  const ParameterGradient<T> gradient{blockIdx.y == 0 ? args.first : args.second, args.wide};
  if (lane == 0 && column < args.cols) gradient.write(column, sum);
}

}  // namespace tilewright::gpu

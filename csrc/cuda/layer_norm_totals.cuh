// What layer_norm's backward adds up over the rows of a block for dweight and dbias, and the partial row it leaves.
#pragma once
#include <type_traits>

#include "cuda/layer_norm.h"
#include "cuda/row_tile.cuh"

namespace tilewright::gpu {
namespace {

// A thread's share of its columns' sums for dweight and dbias: in registers, or in shared memory [.., threads], where
// each thread meets its own alone.
template <typename A, typename Shape>
struct RegisterTotals {
  A value[2][Shape::kItems][Shape::kVec];

  static constexpr bool kShared = false;
  __device__ __forceinline__ A& at(int which, int item, int i) { return value[which][item][i]; }
};

template <typename A, typename Shape>
struct SharedTotals {
  A* mine = dynamic_shared<A>() + threadIdx.x;

  static constexpr bool kShared = true;
  __device__ __forceinline__ A& at(int which, int item, int i) {
    return mine[((which * Shape::kItems + item) * Shape::kVec + i) * Shape::kBlock];
  }
};

template <typename A, typename Shape>
using Totals = std::conditional_t<(Shape::kItems * Shape::kVec > 16), SharedTotals<A, Shape>, RegisterTotals<A, Shape>>;

// Dynamic shared memory for the totals, or for the exchange between the rows of a block.
template <typename A, typename Shape>
constexpr int kTotalsBytes =
    Totals<A, Shape>::kShared
        ? static_cast<int>(2 * Shape::kCapacity * sizeof(A))
        : (Shape::kRowsOfBlock > 1 ? static_cast<int>(Shape::kRowsOfBlock * Shape::kCapacity * sizeof(A)) : 0);

// Adds the groups of a block, in order, and writes the block's partial row.
template <typename T, typename Shape>
__device__ __forceinline__ void write_partials(const LayerNormBackwardArgs<T>& args, Totals<Acc<T>, Shape>& totals) {
  using A = Acc<T>;
#pragma unroll  // or totals would be indexed at run time and live in local memory
  for (int which = 0; which < 2; ++which) {
    A* partial = args.partials + (which * static_cast<int64_t>(gridDim.x) + blockIdx.x) * args.cols;
    if constexpr (Shape::kRowsOfBlock == 1) {
      for_each_access<Shape>(args.cols, [&](int item, int64_t column) {
#pragma unroll
        for (int i = 0; i < Shape::kVec; ++i) partial[column + i] = totals.at(which, item, i);
      });
    } else {
      A* of_group = dynamic_shared<A>();  // [rows of block, capacity]
      for_each_access<Shape>(args.cols, [&](int item, int64_t column) {
#pragma unroll
        for (int i = 0; i < Shape::kVec; ++i) {
          of_group[Shape::group() * Shape::kCapacity + column + i] = totals.at(which, item, i);
        }
      });
      __syncthreads();
      for (int64_t column = threadIdx.x; column < args.cols; column += Shape::kBlock) {
        A sum = A(0);
#pragma unroll 8
        for (int g = 0; g < Shape::kRowsOfBlock; ++g) sum += of_group[g * Shape::kCapacity + column];
        partial[column] = sum;
      }
      __syncthreads();
    }
  }
}

}  // namespace
}  // namespace tilewright::gpu

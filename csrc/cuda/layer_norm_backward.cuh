// layer_norm backward: at most two launches. Blocks walk over rows with their columns' sums for dweight and dbias in
// registers, and each leaves one partial row; a second launch adds the partial rows in a fixed order, so there are no
// atomics and the same input gives the same bits.
//
//   rows      0 1 2 ... R-1 | R ...          block b takes rows b*R ... b*R + R-1, then the same P*R rows further on
//   partial   row b of [P, cols]             P = layer_norm_partial_rows
//
// Rows that do not fit registers beside those sums take dx from one launch and the sums from another.
//
// What becomes of dx is a Sink: a struct for the kernel's parameters, with a Writer that threads make of it.
//   sink.wanted()          is anything written?
//   writer.write(at, dx)   elements at ... at + N - 1, flat
#pragma once
#include <algorithm>

#include "common/macros.h"
#include "cuda/layer_norm.h"
#include "cuda/reduce.cuh"
#include "cuda/row_tile.cuh"

namespace tilewright::gpu {
namespace {

// dx as it is, to a matrix in memory.
template <typename T>
struct MatrixGradient {
  T* dx;  // null: not wanted

  TILEWRIGHT_HOST_DEVICE bool wanted() const { return dx != nullptr; }
  template <int kVec>
  bool aligned(int64_t cols) const {
    return is_aligned<kVec>(dx, cols);
  }

  class Writer {
   public:
    __device__ __forceinline__ explicit Writer(const MatrixGradient& gradient) : dx_(gradient.dx) {}
    template <int N>
    __device__ __forceinline__ void write(int64_t at, const Acc<T> (&dx)[N]) const {
      store<N>(dx_ + at, dx);
    }

   private:
    T* dx_;
  };
};

template <typename T, int N>
__device__ __forceinline__ void read(const LayerNormBackwardArgs<T>& args, int64_t row, int64_t column,
                                     Acc<T> (&xhat)[N], Acc<T> (&dy)[N]) {
  load<N>(args.x + row * args.cols + column, xhat);
  load<N>(args.dy + row * args.cols + column, dy);
  const Acc<T> mean = args.mean[row], rstd = args.rstd[row];
#pragma unroll
  for (int i = 0; i < N; ++i) xhat[i] = (xhat[i] - mean) * rstd;
}

// sums[0] += sum(g), sums[1] += sum(g * xhat)
template <typename T, int N>
__device__ __forceinline__ void add_row_sums(const LayerNormBackwardArgs<T>& args, int64_t column,
                                             const Acc<T> (&xhat)[N], const Acc<T> (&dy)[N], Acc<T> (&sums)[2]) {
  const Parameter<T> weights{args.weight, args.wide_weight};
  Acc<T> weight[N];
  weights.template read<N>(column, Acc<T>(1), weight);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    sums[0] += dy[i] * weight[i];
    sums[1] += dy[i] * weight[i] * xhat[i];
  }
}

// dx = rstd * (g - (means[0] + xhat * means[1])), with the means of g and of g * xhat
template <typename T, int N, typename Writer>
__device__ __forceinline__ void write_dx(const LayerNormBackwardArgs<T>& args, const Writer& writer, int64_t row,
                                         int64_t column, const Acc<T> (&xhat)[N], const Acc<T> (&dy)[N],
                                         const Acc<T> (&means)[2]) {
  const Parameter<T> weights{args.weight, args.wide_weight};
  const Acc<T> rstd = args.rstd[row];
  Acc<T> weight[N], dx[N];
  weights.template read<N>(column, Acc<T>(1), weight);
#pragma unroll
  for (int i = 0; i < N; ++i) dx[i] = rstd * (dy[i] * weight[i] - (means[0] + xhat[i] * means[1]));
  writer.write(row * args.cols + column, dx);
}

// Adds the groups of a block, in order, and writes the block's partial row.
template <typename T, typename Shape>
__device__ __forceinline__ void write_partials(const LayerNormBackwardArgs<T>& args,
                                               const Acc<T> (&sums)[2][Shape::kItems][Shape::kVec]) {
  using A = Acc<T>;
  A* of_group = dynamic_shared<A>();  // [rows of block - 1, capacity]
#pragma unroll  // or totals would be indexed at run time and live in local memory
  for (int which = 0; which < 2; ++which) {
    A* partial = args.partials + (which * static_cast<int64_t>(gridDim.x) + blockIdx.x) * args.cols;
    if (Shape::group() > 0) {
      for_each_access<Shape>(args.cols, [&](int item, int64_t column) {
#pragma unroll
        for (int i = 0; i < Shape::kVec; ++i) {
          of_group[(Shape::group() - 1) * Shape::kCapacity + column + i] = sums[which][item][i];
        }
      });
    }
    if constexpr (Shape::kRowsOfBlock > 1) __syncthreads();
    if (Shape::group() == 0) {
      for_each_access<Shape>(args.cols, [&](int item, int64_t column) {
#pragma unroll
        for (int i = 0; i < Shape::kVec; ++i) {
          A sum = sums[which][item][i];
          for (int g = 0; g < Shape::kRowsOfBlock - 1; ++g) sum += of_group[g * Shape::kCapacity + column + i];
          partial[column + i] = sum;
        }
      });
    }
    if constexpr (Shape::kRowsOfBlock > 1) __syncthreads();
  }
}

template <typename T, typename Shape, typename Sink>
__global__ void __launch_bounds__(Shape::kBlock)
    layer_norm_gradient_rows(const LayerNormBackwardArgs<T> args, const Sink sink) {
  using A = Acc<T>;
  const typename Sink::Writer writer(sink);
  constexpr int kVec = Shape::kVec, kItems = Shape::kItems;
  A totals[2][kItems][kVec] = {};  // of dweight and dbias
  const int64_t step = static_cast<int64_t>(gridDim.x) * Shape::kRowsOfBlock;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * Shape::kRowsOfBlock; first < args.rows; first += step) {
    const int64_t row = first + Shape::group();
    const int64_t cols = row < args.rows ? args.cols : 0;
    A xhat[kItems][kVec], dy[kItems][kVec];
    A sums[2] = {A(0), A(0)};
    for_each_access<Shape>(cols, [&](int item, int64_t column) {
      read<T, kVec>(args, row, column, xhat[item], dy[item]);
      add_row_sums<T, kVec>(args, column, xhat[item], dy[item], sums);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        totals[0][item][i] += dy[item][i] * xhat[item][i];
        totals[1][item][i] += dy[item][i];
      }
    });
    if (!sink.wanted()) continue;
    sum_over_group<Shape::kThreads>(sums);
    sums[0] /= static_cast<A>(args.cols);
    sums[1] /= static_cast<A>(args.cols);
    for_each_access<Shape>(cols, [&](int item, int64_t column) {
      write_dx<T, kVec>(args, writer, row, column, xhat[item], dy[item], sums);
    });
  }
  if (args.partials != nullptr) write_partials<T, Shape>(args, totals);
}

constexpr int kLongBlock = 512;

// dx alone, one block a row of any length.
template <typename T, int kVec, typename Sink>
__global__ void __launch_bounds__(kLongBlock)
    layer_norm_gradient_long_rows(const LayerNormBackwardArgs<T> args, const Sink sink) {
  using A = Acc<T>;
  const typename Sink::Writer writer(sink);
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    A sums[2] = {A(0), A(0)};
    A xhat[kVec], dy[kVec];
    const int64_t begin = static_cast<int64_t>(threadIdx.x) * kVec;
    for (int64_t column = begin; column < args.cols; column += kLongBlock * kVec) {
      read<T, kVec>(args, row, column, xhat, dy);
      add_row_sums<T, kVec>(args, column, xhat, dy, sums);
    }
    sum_over_group<kLongBlock>(sums);
    sums[0] /= static_cast<A>(args.cols);
    sums[1] /= static_cast<A>(args.cols);
    for (int64_t column = begin; column < args.cols; column += kLongBlock * kVec) {
      read<T, kVec>(args, row, column, xhat, dy);
      write_dx<T, kVec>(args, writer, row, column, xhat, dy, sums);
    }
  }
}

template <typename Shape, typename T, typename Sink>
Status launch_rows(const LayerNormBackwardArgs<T>& args, const Sink& sink, const Launch& where) {
  const int64_t blocks = args.partials != nullptr ? layer_norm_partial_rows(args.rows, args.cols)
                                                  : std::min(divide_up(args.rows, Shape::kRowsOfBlock), kMaxBlocks);
  const int shared =
      args.partials != nullptr ? static_cast<int>((Shape::kRowsOfBlock - 1) * Shape::kCapacity * sizeof(Acc<T>)) : 0;
  return launch(where, layer_norm_gradient_rows<T, Shape, Sink>, dim3(static_cast<unsigned>(blocks)), Shape::kBlock,
                shared, args, sink);
}

template <int kVec, typename T, typename Sink>
Status launch_long(const LayerNormBackwardArgs<T>& args, const Sink& sink, const Launch& where) {
  if (sink.wanted()) {
    const int64_t blocks = std::min(args.rows, kMaxBlocks);
    const Status status = launch(where, layer_norm_gradient_long_rows<T, kVec, Sink>,
                                 dim3(static_cast<unsigned>(blocks)), kLongBlock, 0, args, sink);
    if (status != 0) return status;
  }
  return args.partials == nullptr ? 0 : layer_norm_column_partials(args, where);
}

// 16 elements a thread: xhat, dy and two totals of each are 64 registers of the 128 that blocks of 512 threads have. 8
// where each is an access with an address and a condition of its own.
template <int kVec, typename T, typename Sink>
Status launch_by_length(const LayerNormBackwardArgs<T>& args, const Sink& sink, const Launch& where) {
  constexpr int kMost = kVec == 1 ? 8 : 16 / (sizeof(T) == 8 ? 2 : 1) / kVec;
  const int64_t accesses = args.cols / kVec;
  if (accesses <= 8) return launch_rows<RowShape<kVec, 1, 8, 128>>(args, sink, where);
  if (accesses <= 32) return launch_rows<RowShape<kVec, 1, 32, 128>>(args, sink, where);
  if (accesses <= 32 * kMost) return launch_rows<RowShape<kVec, kMost, 32, 128>>(args, sink, where);
  if (accesses <= 128 * kMost) return launch_rows<RowShape<kVec, kMost, 128, 128>>(args, sink, where);
  if (accesses <= 512 * kMost) return launch_rows<RowShape<kVec, kMost, 512, 512>>(args, sink, where);
  return launch_long<kVec>(args, sink, where);
}

template <typename T, typename Sink>
Status launch_layer_norm_backward(const LayerNormBackwardArgs<T>& args, const Sink& sink, const Launch& where) {
  constexpr int kVec = kWidest<T>;
  const bool aligned = is_aligned<kVec>(args.x, args.cols) && is_aligned<kVec>(args.dy, args.cols) &&
                       sink.template aligned<kVec>(args.cols) &&
                       is_aligned<kVec>(static_cast<const T*>(args.weight), args.cols);
  const Status status = aligned ? launch_by_length<kVec>(args, sink, where) : launch_by_length<1>(args, sink, where);
  if (status != 0 || args.partials == nullptr) return status;
  return layer_norm_add_partials(args, where);
}

}  // namespace
}  // namespace tilewright::gpu

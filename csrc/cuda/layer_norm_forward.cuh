// layer_norm forward: one launch. A row lives in the registers of a group of threads, so that mean and centred sum of
// squares are two passes over registers and x is read once. Rows too long for registers take three passes over memory,
// of which the second and third mostly meet the L2 cache.
//
// Where the rows come from is a Source: a struct for the kernel's parameters, with a Reader that threads make of it.
//   source.kAtOnce             accesses of a thread that are read before the first is used
//   reader.read<N>(at)         what memory holds for elements at ... at + N - 1, flat: loads and nothing else, so that
//                              all of a thread's are under way before the first is waited for
//   reader.first(at, raw, x)   those elements, of what was read; each is asked for once, before
//   reader.again(at, x)        by the thread that asked first
#pragma once
#include <algorithm>

#include "cuda/layer_norm.h"
#include "cuda/reduce.cuh"
#include "cuda/row_tile.cuh"

namespace tilewright::gpu {
namespace {

// The rows of a matrix in memory.
template <typename T>
struct MatrixRows {
  const T* x;

  static constexpr int kAtOnce = 8;
  template <int kVec>
  bool aligned(int64_t cols) const {
    return is_aligned<kVec>(x, cols);
  }

  class Reader {
   public:
    template <int N>
    using Raw = Pack<T, N>;

    __device__ __forceinline__ explicit Reader(const MatrixRows& rows) : x_(rows.x) {}
    template <int N>
    __device__ __forceinline__ Raw<N> read(int64_t at) const {
      return load_pack<N>(x_ + at);
    }
    template <int N>
    __device__ __forceinline__ void first(int64_t /*at*/, const Raw<N>& raw, Acc<T> (&x)[N]) const {
      unpack(raw, x);
    }
    template <int N>
    __device__ __forceinline__ void again(int64_t at, Acc<T> (&x)[N]) const {
      load<N>(x_ + at, x);
    }

   private:
    const T* x_;
  };
};

template <typename T>
__device__ __forceinline__ Acc<T> reciprocal_deviation(Acc<T> variance, Acc<T> eps) {
  return rsqrt(variance + eps);
}

template <typename T, int N>
__device__ __forceinline__ void normalise(const LayerNormForwardArgs<T>& args, const Acc<T> (&x)[N], Acc<T> mean,
                                          Acc<T> rstd, int64_t row, int64_t column) {
  const Parameter<T> weights{args.weight, args.wide_weight}, biases{args.bias, args.wide_bias};
  Acc<T> weight[N], bias[N], y[N];
  weights.template read<N>(column, Acc<T>(1), weight);
  biases.template read<N>(column, Acc<T>(0), bias);
#pragma unroll
  for (int i = 0; i < N; ++i) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
  store<N>(args.y + row * args.cols + column, y);
}

template <typename T, typename Shape, typename Source>
__global__ void __launch_bounds__(Shape::kBlock)
    layer_norm_rows(const LayerNormForwardArgs<T> args, const Source source) {
  using A = Acc<T>;
  constexpr int kVec = Shape::kVec;
  const typename Source::Reader reader(source);
  const int64_t step = static_cast<int64_t>(gridDim.x) * Shape::kRowsOfBlock;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * Shape::kRowsOfBlock; first < args.rows; first += step) {
    const int64_t row = first + Shape::group();
    const bool inside = row < args.rows;  // groups without a row still take part in the sums
    const int64_t cols = inside ? args.cols : 0;
    A x[Shape::kItems][kVec];
    A sum[1] = {A(0)};
    for_each_read<Shape, kVec == 1 ? Shape::kItems : Source::kAtOnce>(
        cols, [&](int64_t column) { return reader.template read<kVec>(row * args.cols + column); },
        [&](int item, int64_t column, const auto& raw) {
          reader.first(row * args.cols + column, raw, x[item]);
#pragma unroll
          for (int i = 0; i < kVec; ++i) sum[0] += x[item][i];
        });
    sum_over_group<Shape::kThreads>(sum);
    const A mean = sum[0] / static_cast<A>(args.cols);
    A m2[1] = {A(0)};
    for_each_access<Shape>(cols, [&](int item, int64_t) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) m2[0] += (x[item][i] - mean) * (x[item][i] - mean);
    });
    sum_over_group<Shape::kThreads>(m2);
    const A rstd = reciprocal_deviation<T>(m2[0] / static_cast<A>(args.cols), args.eps);
    for_each_access<Shape>(
        cols, [&](int item, int64_t column) { normalise<T, kVec>(args, x[item], mean, rstd, row, column); });
    if (inside && Shape::column(0) == 0) {
      args.mean[row] = mean;
      args.rstd[row] = rstd;
    }
  }
}

// One block a row, whatever its length.
constexpr int kLongBlock = 512;

template <int kVec, typename Body>
__device__ __forceinline__ void sweep(int64_t cols, const Body& body) {
#pragma unroll 4  // loads of four accesses under way
  for (int64_t column = static_cast<int64_t>(threadIdx.x) * kVec; column < cols; column += kLongBlock * kVec) {
    body(column);
  }
}

// share is 1 / cols: a second division of doubles in the loop would be a subroutine with a stack. The mean is divided,
// so that only its sum is rounded where rows of one value have exact sums.
template <typename T, int kVec, typename Source>
__global__ void __launch_bounds__(kLongBlock)
    layer_norm_long_rows(const LayerNormForwardArgs<T> args, const Source source, Acc<T> share) {
  using A = Acc<T>;
  const typename Source::Reader reader(source);
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const int64_t from = row * args.cols;
    A x[kVec], sum[1] = {A(0)}, m2[1] = {A(0)};
    sweep<kVec>(args.cols, [&](int64_t column) {
      reader.first(from + column, reader.template read<kVec>(from + column), x);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[0] += x[i];
    });
    sum_over_group<kLongBlock>(sum);
    const A mean = sum[0] / static_cast<A>(args.cols);
    sweep<kVec>(args.cols, [&](int64_t column) {
      reader.again(from + column, x);
#pragma unroll
      for (int i = 0; i < kVec; ++i) m2[0] += (x[i] - mean) * (x[i] - mean);
    });
    sum_over_group<kLongBlock>(m2);
    const A rstd = reciprocal_deviation<T>(m2[0] * share, args.eps);
    sweep<kVec>(args.cols, [&](int64_t column) {
      reader.again(from + column, x);
      normalise<T, kVec>(args, x, mean, rstd, row, column);
    });
    if (threadIdx.x == 0) {
      args.mean[row] = mean;
      args.rstd[row] = rstd;
    }
  }
}

template <typename Shape, typename T, typename Source>
Status launch_rows(const LayerNormForwardArgs<T>& args, const Source& source, const Launch& where) {
  const int64_t blocks = std::min(divide_up(args.rows, Shape::kRowsOfBlock), kMaxBlocks);
  return launch(where, layer_norm_rows<T, Shape, Source>, dim3(static_cast<unsigned>(blocks)), Shape::kBlock, 0, args,
                source);
}

// The smallest group of threads whose registers hold the row: 32 elements a thread, or 8 where each is an access with
// an address and a condition of its own.
template <int kVec, typename T, typename Source>
Status launch_by_length(const LayerNormForwardArgs<T>& args, const Source& source, const Launch& where) {
  constexpr int kMost = kVec == 1 ? 8 : 32 / (sizeof(T) == 8 ? 2 : 1) / kVec;
  const int64_t accesses = args.cols / kVec;
  if (accesses <= 8) return launch_rows<RowShape<kVec, 1, 8, 128>>(args, source, where);
  if (accesses <= 32) return launch_rows<RowShape<kVec, 1, 32, 128>>(args, source, where);
  if (accesses <= 32 * kMost) return launch_rows<RowShape<kVec, kMost, 32, 128>>(args, source, where);
  if (accesses <= 128 * kMost) return launch_rows<RowShape<kVec, kMost, 128, 128>>(args, source, where);
  if (accesses <= 512 * kMost) return launch_rows<RowShape<kVec, kMost, 512, 512>>(args, source, where);
  const int64_t blocks = std::min(args.rows, kMaxBlocks);
  return launch(where, layer_norm_long_rows<T, kVec, Source>, dim3(static_cast<unsigned>(blocks)), kLongBlock, 0, args,
                source, Acc<T>(1) / static_cast<Acc<T>>(args.cols));
}

template <typename T, typename Source>
Status launch_layer_norm_forward(const LayerNormForwardArgs<T>& args, const Source& source, const Launch& where) {
  constexpr int kVec = kWidest<T>;
  const bool aligned = source.template aligned<kVec>(args.cols) && is_aligned<kVec>(args.y, args.cols) &&
                       is_aligned<kVec>(static_cast<const T*>(args.weight), args.cols) &&
                       is_aligned<kVec>(static_cast<const T*>(args.bias), args.cols);
  return aligned ? launch_by_length<kVec>(args, source, where) : launch_by_length<1>(args, source, where);
}

}  // namespace
}  // namespace tilewright::gpu

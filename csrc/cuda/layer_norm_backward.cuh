// layer_norm backward: at most two launches. Blocks walk over rows with their columns' sums for dweight and dbias in
// registers, and each leaves one partial row; a second launch adds the partial rows in a fixed order, so there are no
// atomics and the same input gives the same bits.
//
//   rows      0 1 2 ... R-1 | R ...          block b takes rows b*R ... b*R + R-1, then the same P*R rows further on
//   partial   row b of [P, cols]             P = layer_norm_partial_rows
//
// There are few blocks, so that there are few partial rows, and hence large ones: what a multiprocessor has in flight
// is 512 threads' accesses of each of its two blocks. Rows of more than 16 elements a thread keep the sums in shared
// memory, and those that do not fit registers at all take dx from one launch and the sums from another.
//
// What becomes of dx is a Sink: a struct for the kernel's parameters, with a Writer that threads make of it.
//   sink.wanted()          is anything written?
//   writer.write(at, dx)   elements at ... at + N - 1, flat
#pragma once
#include <algorithm>

#include "common/macros.h"
#include "cuda/layer_norm.h"
#include "cuda/layer_norm_totals.cuh"
#include "cuda/reduce.cuh"
#include "cuda/row_tile.cuh"

namespace tilewright::gpu {
namespace {

// dx as it is, to a matrix in memory.
template <typename T>
struct MatrixGradient {
  T* dx;  // null: not wanted

  static constexpr bool kLight = true;  // few registers beside those of the sums
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

template <typename A>
struct RowStatistics {
  A mean, rstd;
};

template <typename T>
__device__ __forceinline__ RowStatistics<Acc<T>> statistics_of(const LayerNormBackwardArgs<T>& args, int64_t row) {
  return {args.mean[row], args.rstd[row]};
}

// An access to a row as it lies in memory: of 16-bit types half the registers that xhat and dy take.
template <typename T, int N>
struct RowAccess {
  Pack<T, N> x, dy;
};

template <int N, typename T>
__device__ __forceinline__ RowAccess<T, N> read(const LayerNormBackwardArgs<T>& args, int64_t row, int64_t column) {
  const int64_t at = row * args.cols + column;
  return {*reinterpret_cast<const Pack<T, N>*>(args.x + at), *reinterpret_cast<const Pack<T, N>*>(args.dy + at)};
}

template <typename T, int N>
__device__ __forceinline__ void expand(const RowAccess<T, N>& access, const RowStatistics<Acc<T>>& row,
                                       Acc<T> (&xhat)[N], Acc<T> (&dy)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    xhat[i] = rounded_product(widen(access.x.value[i]) - row.mean, row.rstd);  // the same bits each time
    dy[i] = widen(access.dy.value[i]);
  }
}

// g = dy * weight, rounded: in rows of few columns dx is a difference of equal products, which contraction would spoil.
template <typename T, int N>
__device__ __forceinline__ void weigh(const LayerNormBackwardArgs<T>& args, int64_t column, const Acc<T> (&dy)[N],
                                      Acc<T> (&g)[N]) {
  const Parameter<T> weights{args.weight, args.wide_weight};
  weights.template read<N>(column, Acc<T>(1), g);
#pragma unroll
  for (int i = 0; i < N; ++i) g[i] = rounded_product(dy[i], g[i]);
}

// What a row's dx takes of the whole row.
enum RowSum { kSumG, kSumGX, kSumX, kRowSums };

template <typename T, int N>
__device__ __forceinline__ void add_row_sums(const LayerNormBackwardArgs<T>& args, int64_t column,
                                             const Acc<T> (&xhat)[N], const Acc<T> (&dy)[N], Acc<T> (&sums)[kRowSums]) {
  Acc<T> g[N];
  weigh(args, column, dy, g);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    sums[kSumG] += g[i];
    sums[kSumGX] += g[i] * xhat[i];
    sums[kSumX] += xhat[i];
  }
}

// The saved mean is rounded, so xhat has a mean of its own, by which rows whose values differ by little would lose
// digits. With xhat - mean_x for xhat they keep them.
template <typename A>
struct RowMeans {
  A mean_x, mean_gx, offset;

  __device__ __forceinline__ RowMeans(const A (&sums)[kRowSums], int64_t cols)
      : mean_x(sums[kSumX] / static_cast<A>(cols)) {
    const A mean_g = sums[kSumG] / static_cast<A>(cols);
    mean_gx = sums[kSumGX] / static_cast<A>(cols) - mean_x * mean_g;
    offset = mean_g - mean_x * mean_gx;
  }
};

// dx = rstd * (g - mean(g) - (xhat - mean_x) * mean((xhat - mean_x) * g))
template <typename T, int N, typename Writer>
__device__ __forceinline__ void write_dx(const LayerNormBackwardArgs<T>& args, const Writer& writer, int64_t row,
                                         int64_t column, const Acc<T> (&xhat)[N], const Acc<T> (&dy)[N], Acc<T> rstd,
                                         const RowMeans<Acc<T>>& means) {
  Acc<T> dx[N];
  weigh(args, column, dy, dx);
#pragma unroll
  for (int i = 0; i < N; ++i) dx[i] = rstd * (dx[i] - means.offset - xhat[i] * means.mean_gx);
  writer.write(row * args.cols + column, dx);
}

// Two blocks on a multiprocessor are 64 registers a thread, which suffice where each holds one access.
template <typename Shape, typename Sink>
constexpr int kGradientBlocks = kShortConversions && Shape::kItems == 1 && Sink::kLight ? 2 : 1;

template <typename T, typename Shape, typename Sink>
__global__ void __launch_bounds__(Shape::kBlock, (kGradientBlocks<Shape, Sink>))
    layer_norm_gradient_rows(const LayerNormBackwardArgs<T> args, const Sink sink) {
  using A = Acc<T>;
  const typename Sink::Writer writer(sink);
  constexpr int kVec = Shape::kVec, kItems = Shape::kItems;
  Totals<A, Shape> totals;
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) totals.at(0, item, i) = totals.at(1, item, i) = A(0);
  }
  const int64_t step = static_cast<int64_t>(gridDim.x) * Shape::kRowsOfBlock;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * Shape::kRowsOfBlock; first < args.rows; first += step) {
    const int64_t row = first + Shape::group();
    const bool inside = row < args.rows;  // groups without a row still take part in the sums
    const int64_t cols = inside ? args.cols : 0;
    const RowStatistics<A> statistics = statistics_of(args, inside ? row : 0);
    RowAccess<T, kVec> accesses[kItems];
    for_each_access<Shape>(cols, [&](int item, int64_t column) { accesses[item] = read<kVec>(args, row, column); });
    A xhat[kVec], dy[kVec], sums[kRowSums] = {};
    for_each_access<Shape>(cols, [&](int item, int64_t column) {
      expand(accesses[item], statistics, xhat, dy);
      add_row_sums<T, kVec>(args, column, xhat, dy, sums);
    });
    sum_over_group<Shape::kThreads>(sums);
    const RowMeans<A> means(sums, args.cols);
    for_each_access<Shape>(cols, [&](int item, int64_t column) {
      expand(accesses[item], statistics, xhat, dy);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        totals.at(0, item, i) += dy[i] * (xhat[i] - means.mean_x);
        totals.at(1, item, i) += dy[i];
      }
      if (sink.wanted()) write_dx<T, kVec>(args, writer, row, column, xhat, dy, statistics.rstd, means);
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
    const RowStatistics<A> statistics = statistics_of(args, row);
    A xhat[kVec], dy[kVec], sums[kRowSums] = {};
    const int64_t begin = static_cast<int64_t>(threadIdx.x) * kVec;
    for (int64_t column = begin; column < args.cols; column += kLongBlock * kVec) {
      expand(read<kVec>(args, row, column), statistics, xhat, dy);
      add_row_sums<T, kVec>(args, column, xhat, dy, sums);
    }
    sum_over_group<kLongBlock>(sums);
    const RowMeans<A> means(sums, args.cols);
    for (int64_t column = begin; column < args.cols; column += kLongBlock * kVec) {
      expand(read<kVec>(args, row, column), statistics, xhat, dy);
      write_dx<T, kVec>(args, writer, row, column, xhat, dy, statistics.rstd, means);
    }
  }
}

template <typename Shape, typename T, typename Sink>
Status launch_rows(const LayerNormBackwardArgs<T>& args, const Sink& sink, const Launch& where) {
  const bool sums = args.partials != nullptr;
  const int64_t blocks = sums ? layer_norm_partial_rows(args.rows, args.cols)
                              : std::min(divide_up(args.rows, Shape::kRowsOfBlock), kMaxBlocks);
  const Status status = launch(where, layer_norm_gradient_rows<T, Shape, Sink>, dim3(static_cast<unsigned>(blocks)),
                               Shape::kBlock, kTotalsBytes<Acc<T>, Shape>, args, sink);
  return status != 0 || !sums ? status : layer_norm_add_partials(args, blocks, where);
}

template <int kVec, typename T, typename Sink>
Status launch_long(const LayerNormBackwardArgs<T>& args, const Sink& sink, const Launch& where) {
  if (sink.wanted()) {
    const int64_t blocks = std::min(args.rows, kMaxBlocks);
    const Status status = launch(where, layer_norm_gradient_long_rows<T, kVec, Sink>,
                                 dim3(static_cast<unsigned>(blocks)), kLongBlock, 0, args, sink);
    if (status != 0) return status;
  }
  return args.partials == nullptr ? 0 : layer_norm_column_sums(args, where);
}

// As few threads for a row as hold it by one access each, up to the whole block; then up to 16 elements a thread, and
// 24 where the totals move to shared memory, 96 KiB of the 99 that every architecture gives a block.
template <int kVec, typename T, typename Sink>
Status launch_by_length(const LayerNormBackwardArgs<T>& args, const Sink& sink, const Launch& where) {
  constexpr int kBlock = 512;
  const int64_t accesses = args.cols / kVec;
  if (accesses <= 8) return launch_rows<RowShape<kVec, 1, 8, kBlock>>(args, sink, where);
  if constexpr (kVec == 1) {  // each access has an address and a condition of its own
    if (accesses <= 32) return launch_rows<RowShape<kVec, 1, 32, kBlock>>(args, sink, where);
    if (accesses <= 32 * 8) return launch_rows<RowShape<kVec, 8, 32, kBlock>>(args, sink, where);
    if (accesses <= 128 * 8) return launch_rows<RowShape<kVec, 8, 128, kBlock>>(args, sink, where);
    if (accesses <= 512 * 8) return launch_rows<RowShape<kVec, 8, 512, kBlock>>(args, sink, where);
  } else {
    constexpr int kMost = 16 / (sizeof(T) == 8 ? 2 : 1) / kVec;
    if (accesses <= 16) return launch_rows<RowShape<kVec, 1, 16, kBlock>>(args, sink, where);
    if (accesses <= 32) return launch_rows<RowShape<kVec, 1, 32, kBlock>>(args, sink, where);
    if (accesses <= 64) return launch_rows<RowShape<kVec, 1, 64, kBlock>>(args, sink, where);
    if (accesses <= 128) return launch_rows<RowShape<kVec, 1, 128, kBlock>>(args, sink, where);
    if (accesses <= 256) return launch_rows<RowShape<kVec, 1, 256, kBlock>>(args, sink, where);
    if (accesses <= 512) return launch_rows<RowShape<kVec, 1, 512, kBlock>>(args, sink, where);
    if (accesses <= 512 * kMost) return launch_rows<RowShape<kVec, kMost, 512, kBlock>>(args, sink, where);
    if constexpr (sizeof(T) < 8) {
      if (accesses <= 768 * kMost) return launch_rows<RowShape<kVec, kMost * 3 / 2, 512, kBlock>>(args, sink, where);
    }
  }
  return launch_long<kVec>(args, sink, where);
}

template <typename T, typename Sink>
Status launch_layer_norm_backward(const LayerNormBackwardArgs<T>& args, const Sink& sink, const Launch& where) {
  constexpr int kVec = kWidest<T>;
  const bool aligned = is_aligned<kVec>(args.x, args.cols) && is_aligned<kVec>(args.dy, args.cols) &&
                       sink.template aligned<kVec>(args.cols) &&
                       is_aligned<kVec>(static_cast<const T*>(args.weight), args.cols);
  return aligned ? launch_by_length<kVec>(args, sink, where) : launch_by_length<1>(args, sink, where);
}

}  // namespace
}  // namespace tilewright::gpu

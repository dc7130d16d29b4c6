// What the weight gradients share: sums over the threads of a block that own the same channels, and a walk over strips.
#pragma once
#include "cuda/depthwise.cuh"

namespace tilewright::gpu {

constexpr int kSumBlock = 128, kSumWarps = kSumBlock / kWarp;

// Shared memory of sum_over_strips.
template <typename A>
constexpr int sum_bytes(int values, int lanes) {
  return static_cast<int>(sizeof(A)) * kSumWarps * values * lanes;
}

// Adds N values over the threads with the same place among 2^lanes_log neighbours, in a fixed order, and calls
// write(n, lane, sum) once for each. Every thread of the block calls it.
template <int N, typename A, typename Write>
__device__ __forceinline__ void sum_over_strips(A (&values)[N], int lanes_log, const Write& write) {
  const int lanes = 1 << lanes_log;
  for (int distance = kWarp / 2; distance >= lanes; distance /= 2) {
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] += __shfl_xor_sync(kAllLanes, values[n], distance);
  }
  A* of_warp = dynamic_shared<A>();  // [warps, N, lanes]
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  if (lane < lanes) {
#pragma unroll
    for (int n = 0; n < N; ++n) of_warp[((warp * N + n) << lanes_log) + lane] = values[n];
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < N << lanes_log; e += kSumBlock) {
    A sum = A(0);
#pragma unroll
    for (int w = 0; w < kSumWarps; ++w) sum += of_warp[((w * N) << lanes_log) + e];
    write(e >> lanes_log, e & (lanes - 1), sum);
  }
  __syncthreads();  // the array is written again by the next call
}

// Walks over (image, row, strip) in steps of a fixed number of strips without dividing anew.
struct Walk {
  int64_t image, image_step;
  int row, strip, rows, strips, row_step, strip_step;

  __device__ __forceinline__ Walk(int64_t first, int step, int rows, int strips) : rows(rows), strips(strips) {
    const Quotient a = divide(first, strips), b = divide(a.whole, rows);
    image = b.whole, row = b.rest, strip = a.rest;
    const Quotient c = divide(step, strips), d = divide(c.whole, rows);
    image_step = d.whole, row_step = d.rest, strip_step = c.rest;
  }
  __device__ __forceinline__ void advance() {
    strip += strip_step;
    const bool next_row = strip >= strips;
    if (next_row) strip -= strips;
    row += row_step + (next_row ? 1 : 0);
    const bool next_image = row >= rows;
    if (next_image) row -= rows;
    image += image_step + (next_image ? 1 : 0);
  }
};

// Part `part` of `parts` of a stretch: [begin, end).
struct Stretch {
  int64_t begin, end;
};
__device__ __forceinline__ Stretch stretch_of(int64_t size, int64_t part, int64_t parts) {
  const int64_t each = (size + parts - 1) / parts, begin = part * each, end = begin + each;
  return {begin, end < size ? end : size};
}

template <typename T>
__device__ __forceinline__ Acc<T>* partial(const DepthwiseWeightArgs<T>& args, int64_t part, int tap) {
  const int64_t taps = static_cast<int64_t>(args.geometry.kernel[0]) * args.geometry.kernel[1];
  return args.partials + (part * (taps + 1) + tap) * args.dy.channels;
}

}  // namespace tilewright::gpu

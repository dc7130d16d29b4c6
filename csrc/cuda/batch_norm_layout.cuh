// The two layouts of batch_norm.h as kernels see them: what a block's threads read, in which order, and how their sums
// become one. A task is one part of one channel (planes) or of one tile of channels (rows).
//
//   rows    threads   0    1   ..  L-1 |  L   ..           L = lanes of a row, V = elements of one access
//           channels  0..  V..         |  0..              each thread keeps V channels, threads t, t + L, ... share them
//           row       begin            |  begin + 1        the next access is 256 / L rows further on
//
//   planes  threads   0    1   ..  255                     one channel, whose runs are walked as if they were one:
//           elements  0..  V.. ..                          the next access is 256 accesses further on
//
// A walk visits a thread's accesses of the task, from the first or from the last. The way back meets in the L2 cache
// what the way there left in it.
#pragma once
#include "cuda/batch_norm_plan.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace tilewright::gpu {

// What the first value of a part is good for: an offset that keeps sums small. It must be finite, or it would hide
// where Inf and NaN lie.
template <typename A>
__device__ __forceinline__ A finite_or_zero(A value) {
  return value - value == A(0) ? value : A(0);
}

template <typename T, int kVecIn>
struct RowsLayout {
  using Element = T;
  using A = Acc<T>;
  static constexpr int kVec = kVecIn, kChannels = kVecIn;

  const BatchNormGrid& grid;
  int64_t part, channel, begin, end;

  __device__ __forceinline__ RowsLayout(const BatchNormGrid& of, int64_t task) : grid(of) {
    part = task / grid.columns;
    const int64_t tile = task - part * grid.columns;
    channel = ((tile << grid.lane_shift) + lane()) * kVec;
    begin = part * grid.part;
    end = min(begin + grid.part, grid.images);
  }

  __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x) & ((1 << grid.lane_shift) - 1); }
  __device__ __forceinline__ int row() const { return static_cast<int>(threadIdx.x) >> grid.lane_shift; }
  __device__ __forceinline__ bool inside() const { return channel < grid.channels; }
  // One thread of those that share channels writes what is theirs.
  __device__ __forceinline__ bool writes() const { return row() == 0 && inside(); }
  __device__ __forceinline__ int64_t values() const { return end - begin; }

  struct Walk {
    int64_t offset, step, remaining;
    __device__ __forceinline__ int64_t next() {
      const int64_t at = offset;
      offset += step;
      return at;
    }
  };

  template <bool kForward>
  __device__ __forceinline__ Walk walk() const {
    const int rows_shift = 8 - grid.lane_shift;  // of the block's 256 threads
    const int64_t first = begin + row();
    const int64_t accesses = inside() && first < end ? ((end - first - 1) >> rows_shift) + 1 : 0;
    const int64_t from = kForward ? first : first + ((accesses - 1) << rows_shift);
    const int64_t step = grid.channels << rows_shift;
    return {from * grid.channels + channel, kForward ? step : -step, accesses};
  }

  __device__ __forceinline__ void first_values(const T* x, A (&out)[kChannels]) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) out[c] = A(0);
    if (inside()) load<kVec>(x + begin * grid.channels + channel, out);
  }

  // Sums of each value over the threads that share channels; all of them end with the same bits.
  template <int kValues>
  __device__ __forceinline__ void sum(A (&values)[kValues]) const {
    constexpr int kWarps = kBatchNormThreads / kWarp;
    __shared__ A of_warp[kWarps][kValues][kWarp];
    const int lanes = 1 << grid.lane_shift, warp = static_cast<int>(threadIdx.x) / kWarp;
    for (int distance = lanes; distance < kWarp; distance *= 2) {
#pragma unroll
      for (int v = 0; v < kValues; ++v) values[v] += __shfl_xor_sync(kAllLanes, values[v], distance);
    }
    if (static_cast<int>(threadIdx.x) % kWarp < lanes) {
#pragma unroll
      for (int v = 0; v < kValues; ++v) of_warp[warp][v][lane()] = values[v];
    }
    __syncthreads();
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      A total = A(0);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += of_warp[w][v][lane()];
      values[v] = total;
    }
    __syncthreads();  // the array is written again by the next call
  }
};

template <typename T, int kVecIn>
struct PlanesLayout {
  using Element = T;
  using A = Acc<T>;
  static constexpr int kVec = kVecIn, kChannels = 1;

  const BatchNormGrid& grid;
  int64_t part, channel, begin, end;

  __device__ __forceinline__ PlanesLayout(const BatchNormGrid& of, int64_t task) : grid(of) {
    part = task / grid.columns;
    channel = task - part * grid.columns;
    begin = part * grid.part;
    end = min(begin + grid.part, grid.images * grid.size);
  }

  __device__ __forceinline__ bool inside() const { return true; }
  __device__ __forceinline__ bool writes() const { return threadIdx.x == 0; }
  __device__ __forceinline__ int64_t values() const { return end - begin; }

  // Offset of an access of the channel, counted through its runs.
  __device__ __forceinline__ int64_t offset(int64_t image, int64_t pack) const {
    return (image * grid.channels + channel) * grid.size + pack * kVec;
  }

  template <bool kForward>
  struct Walk {
    int64_t offset, pack, remaining, jump, wrap, packs, step_packs;
    __device__ __forceinline__ int64_t next() {
      const int64_t at = offset;
      if constexpr (kForward) {
        offset += jump;
        pack += step_packs;
        if (pack >= packs) pack -= packs, offset += wrap;
      } else {
        offset -= jump;
        pack -= step_packs;
        if (pack < 0) pack += packs, offset -= wrap;
      }
      return at;
    }
  };

  template <bool kForward>
  __device__ __forceinline__ Walk<kForward> walk() const {
    const int64_t first = begin / kVec + threadIdx.x, last = end / kVec;
    const int64_t accesses = first < last ? (last - first - 1) / kBatchNormThreads + 1 : 0;
    const int64_t from = kForward ? first : first + (accesses - 1) * kBatchNormThreads;
    const int64_t image = from / grid.packs, pack = from - image * grid.packs;
    return {offset(image, pack),
            pack,
            accesses,
            grid.step_images * grid.channels * grid.size + grid.step_packs * kVec,
            (grid.channels - 1) * grid.size,
            grid.packs,
            grid.step_packs};
  }

  __device__ __forceinline__ void first_values(const T* x, A (&out)[1]) const {
    const int64_t image = begin / grid.size;
    out[0] = widen(x[(image * grid.channels + channel) * grid.size + (begin - image * grid.size)]);
  }

  template <int kValues>
  __device__ __forceinline__ void sum(A (&values)[kValues]) const {
    sum_over_group<kBatchNormThreads>(values);
  }
};

// Is a chunk known to be whole when this is compiled?
template <bool kWholeIn>
struct Chunk {
  static constexpr bool kWhole = kWholeIn;
  int items;  // that lie inside the task: the first ones
  __device__ __forceinline__ bool has(int item) const { return kWhole || item < items; }
};

// Calls body(offsets, chunk) for each kItems accesses of a walk, so that all of them are under way at a time.
template <int kItems, typename Walk, typename Body>
__device__ __forceinline__ void for_each_chunk(Walk walk, const Body& body) {
  int64_t offsets[kItems];
  for (; walk.remaining >= kItems; walk.remaining -= kItems) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) offsets[i] = walk.next();
    body(offsets, Chunk<true>{kItems});
  }
  if (walk.remaining == 0) return;
#pragma unroll
  for (int i = 0; i < kItems; ++i) offsets[i] = walk.next();
  body(offsets, Chunk<false>{static_cast<int>(walk.remaining)});
}

// Loads the chunk's accesses; those outside are 0.
template <int kItems, typename T, int kVec, typename Items>
__device__ __forceinline__ void load_chunk(const T* from, const int64_t (&offsets)[kItems], const Items& chunk,
                                           Acc<T> (&out)[kItems][kVec]) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (chunk.has(i)) {
      load<kVec>(from + offsets[i], out[i]);
    } else {
#pragma unroll
      for (int v = 0; v < kVec; ++v) out[i][v] = Acc<T>(0);
    }
  }
}

template <int kItems, typename T, int kVec, typename Items>
__device__ __forceinline__ void store_chunk(T* to, const int64_t (&offsets)[kItems], const Items& chunk,
                                            const Acc<T> (&values)[kItems][kVec]) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (chunk.has(i)) store<kVec>(to + offsets[i], values[i]);
  }
}

// Native's rule for a variance and an eps of 0 in training; in evaluation the quotient is infinite, as native's is.
template <typename A>
__device__ __forceinline__ A reciprocal_deviation(A var, A eps, bool training) {
  return training && var == A(0) && eps == A(0) ? A(0) : A(1) / sqrt(var + eps);
}

// Blocks of a pass over all tasks; kernels loop over what a grid cannot hold.
inline dim3 batch_norm_blocks(const BatchNormGrid& grid) {
  return dim3(static_cast<unsigned>(std::min(grid.columns * grid.parts, kMaxBlocks)));
}

// Is a pointer null or aligned for the widest access? Where the length of rows or runs allows it, all accesses then are.
template <typename T>
bool is_aligned_for_vectors(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

}  // namespace tilewright::gpu

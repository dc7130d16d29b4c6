// What the depthwise kernels share: cutting images into strips, reading inside the image, the epilogue.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/depthwise.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/row_tile.cuh"
#include "cuda/vec.cuh"

namespace tilewright::gpu {

constexpr int kDepthwiseBlock = 256;

// a / b and a % b for non-negative numbers. A 64-bit division costs as much as a 3x3 window, so it is avoided where
// both fit 32 bits.
struct Quotient {
  int64_t whole;
  int rest;
};
__device__ __forceinline__ Quotient divide(int64_t a, int b) {
  if (a <= 0xffffffffll) {
    const auto small = static_cast<unsigned>(a), by = static_cast<unsigned>(b), whole = small / by;
    return {static_cast<int64_t>(whole), static_cast<int>(small - whole * by)};
  }
  return {a / b, static_cast<int>(a % b)};
}

// Outputs of one direction, cut into strips of `size` whose members lie `step` apart: the strip (residue, index) has
// the positions residue + step * (size * index + 0, 1, ... size - 1). With a dilation as step, neighbouring members
// share all but one of their inputs.
struct Strips {
  int step, size, residues, per_residue;

  __host__ __device__ int count() const { return residues * per_residue; }
  // The first position of a strip.
  __device__ __forceinline__ int at(int strip) const {
    if (step == 1) return strip * size;
    const int residue = strip / per_residue;
    return residue + step * size * (strip - residue * per_residue);
  }
};

inline Strips cut_into_strips(int positions, int step, int size) {
  const int longest = (positions + step - 1) / step;  // of the residues, of which those beyond the positions are empty
  return {step, size, step < positions ? step : positions, (longest + size - 1) / size};
}

// The channels of channels_last images, cut into tiles of 2^lanes_log threads with one access each.
struct ChannelTiles {
  int lanes_log, count;
  __host__ __device__ int lanes() const { return 1 << lanes_log; }
};

// Few idle lanes first, then wide tiles; no more than 128 bytes.
inline ChannelTiles cut_into_channel_tiles(int64_t accesses, int access_bytes) {
  ChannelTiles best = {0, 0};
  int64_t fewest = 0;
  for (int log = 4; log >= 0; --log) {
    if ((1 << log) * access_bytes > 128) continue;
    const int64_t count = divide_up(accesses, int64_t{1} << log), lanes = count << log;
    if (best.count == 0 || (lanes < fewest && log >= 2)) {
      best = {log, static_cast<int>(count)};
      fewest = lanes;
    }
  }
  return best;
}

// out = inside ? from[0 ... N) : 0
template <int N, typename T>
__device__ __forceinline__ Pack<T, N> pack_inside(bool inside, const T* from) {
  Pack<T, N> pack = {};
  if (inside) pack = *reinterpret_cast<const Pack<T, N>*>(from);
  return pack;
}
template <int N, typename T>
__device__ __forceinline__ void widen(const Pack<T, N>& pack, Acc<T> (&out)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = widen(pack.value[i]);
}
template <int N, typename T>
__device__ __forceinline__ void load_inside(bool inside, const T* from, Acc<T> (&out)[N]) {
  widen(pack_inside<N>(inside, from), out);
}

// The same number, of which the compiler no longer knows that it is the same in every turn of a loop: what is computed
// from it is computed anew and not kept in registers.
__device__ __forceinline__ int64_t computed_anew(int64_t x) {
#if defined(__CUDACC__)
  asm volatile("" : "+l"(x));
#endif
  return x;
}
__device__ __forceinline__ int computed_anew(int x) { return static_cast<int>(computed_anew(int64_t{x})); }

__device__ __forceinline__ bool is_inside(int at, int size) {
  return static_cast<unsigned>(at) < static_cast<unsigned>(size);
}

// Applies an activation to rows of registers. The costly ones take the first row while the others move up, once for
// each row: a body for every value would make most of a kernel's code.
template <int kRows, int N, typename A>
__device__ __forceinline__ void activate_rows(Activation kind, A (&rows)[kRows][N]) {
  if (kind == Activation::kNone) return;
  if (kind == Activation::kRelu) return map_elements(rows, [](A x, int, int) { return relu(x); });
  if (kind == Activation::kRelu6) return map_elements(rows, [](A x, int, int) { return relu6(x); });
#pragma unroll 1
  for (int turn = 0; turn < kRows; ++turn) {
    A first[1][N];
#pragma unroll
    for (int i = 0; i < N; ++i) first[0][i] = rows[0][i];
    activate(kind, first);
#pragma unroll
    for (int r = 0; r + 1 < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < N; ++i) rows[r][i] = rows[r + 1][i];
    }
#pragma unroll
    for (int i = 0; i < N; ++i) rows[kRows - 1][i] = first[0][i];
  }
}

// Bias, residual, saved, activation, store. offset(k) is where the k-th output row of N elements goes, negative for
// none; its elements are neighbours in memory and belong to channel, channel + 1, ...
template <typename T, int kRows, int N, typename Offset>
__device__ __forceinline__ void finish(const DepthwiseArgs<T>& args, int channel, Acc<T> (&sums)[kRows][N],
                                       const Offset& offset) {
  using A = Acc<T>;
  if (args.bias != nullptr && channel < args.out.channels) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A bias = widen(args.bias[channel + i]);
#pragma unroll
      for (int k = 0; k < kRows; ++k) sums[k][i] += bias;
    }
  }
  if (args.residual != nullptr) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int64_t at = offset(k);
      A residual[N];
      load_inside<N>(at >= 0, args.residual + at, residual);
#pragma unroll
      for (int i = 0; i < N; ++i) sums[k][i] += residual[i];
    }
  }
  if (args.saved != nullptr) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int64_t at = offset(k);
      if (at >= 0) store<N>(args.saved + at, sums[k]);
    }
  }
  activate_rows(args.activation, sums);
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    const int64_t at = offset(k);
    if (at >= 0) store<N>(args.out.data + at, sums[k]);
  }
}

// Added to a row of shared weights: keeps 16-byte alignment and spreads the taps over banks.
constexpr int kPitchPad = 4;

// The weights of filters first, first + 1, ... of a block's channel tile as [tap][pitch] in shared memory, 0 behind the
// last filter. Neighbouring threads read neighbouring taps, which is how weights usually lie.
template <int kKernel, typename T>
__device__ __forceinline__ void share_weights(const DepthwiseWeight<T>& weight, int first, int filters, int width,
                                              int pitch, Acc<T>* shared) {
  constexpr int kTaps = kKernel * kKernel;
  for (int e = static_cast<int>(threadIdx.x); e < kTaps * width; e += kDepthwiseBlock) {
    const int f = e / kTaps, tap = e % kTaps;
    Acc<T> value = Acc<T>(0);
    if (first + f < filters) {
      const int64_t at = (first + f) * weight.filter + tap / kKernel * weight.row + tap % kKernel * weight.col;
      value = widen(weight.data[at]);
    }
    shared[tap * pitch + f] = value;
  }
}

// N values of shared memory, 16 bytes at a time.
template <int N, typename A>
__device__ __forceinline__ void read_shared(const A* from, A (&out)[N]) {
  constexpr int kPiece = kWidest<A> < N ? kWidest<A> : N;
#pragma unroll
  for (int at = 0; at < N; at += kPiece) {
    const Pack<A, kPiece> piece = *reinterpret_cast<const Pack<A, kPiece>*>(from + at);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) out[at + i] = piece.value[i];
  }
}

// Blocks for this many work items of one block each.
inline dim3 blocks_for(int64_t items) { return dim3(static_cast<unsigned>(items < kMaxBlocks ? items : kMaxBlocks)); }

// Elements of an access by tiles: 8 of 16 bits where a 3x3 window leaves registers for them.
template <typename T, int kKernel>
constexpr int kTileVec = sizeof(T) == 2 && kKernel == 3 ? 8 : 4;

// May the channels be moved kVec at a time?
template <int kVec, typename T>
bool channels_are_aligned(const DepthwiseArgs<T>& args) {
  const int64_t channels = args.out.channels;
  return args.in.channels == channels && is_aligned<kVec>(args.in.data, channels) &&
         is_aligned<kVec>(args.out.data, channels) && is_aligned<kVec>(args.residual, channels) &&
         is_aligned<kVec>(args.saved, channels);
}

// Calls body.operator()<3>(), <5>() or <7>().
template <typename Body>
Status for_kernel_size(int size, const Body& body) {
  if (size == 3) return body.template operator()<3>();
  if (size == 5) return body.template operator()<5>();
  return body.template operator()<7>();
}

}  // namespace tilewright::gpu

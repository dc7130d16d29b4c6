// dropout of dense tensors whose memory is not in logical order. The mask belongs to logical indices.
//
// Transposed (channels_last): memory [batch, minor, major]. A block makes the bits of a tile in shared memory, along
// minor, and then walks the tile along major, where neighbouring threads meet neighbouring memory:
//
//             minor ->   one row of bytes for each of the tile's majors, from the group its first element lies in
//   major 0   [ byte | byte | ... ]                          element (c, m) is bit phase(c) + m of row c
//   major 1   [ byte | byte | ... ]
//
// Any other order: a thread takes a logical group and finds its elements by the strides; by whole accesses where the
// last dimension is contiguous and holds whole groups (the heads of attention), one by one elsewhere.
#include "cuda/elementwise.cuh"
#include "cuda/keep.cuh"

namespace tilewright::gpu {
namespace {

__device__ __forceinline__ int64_t offset_of(const PermutedLayout& layout, int64_t index) {
  int64_t offset = 0;
  for (int d = layout.dims - 1; d >= 0; --d) {
    const DivMod position = divide(index, layout.sizes[d]);
    offset += position.remainder * layout.strides[d];
    index = position.quotient;
  }
  return offset;
}

template <typename T, int N>
__device__ __forceinline__ void apply(const DropoutArgs<T>& args, int64_t offset, const Acc<T> (&factor)[N]) {
  Acc<T> v[N], residual[N];
  load<N>(args.x + offset, v);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] *= factor[i];
  if (args.residual != nullptr) {
    load<N>(args.residual + offset, residual);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] += residual[i];
  }
  store<N>(args.y + offset, v);
}

// Whole accesses: the last dimension holds whole groups, one behind the other.
template <typename T, int kVec>
__device__ __forceinline__ void permuted_group(const DropoutArgs<T>& args, const PermutedLayout& layout,
                                               const Keep<Acc<T>>& keep, int64_t first) {
  Acc<T> factor[kGroup];
  keep.factors(first, factor);
  const int64_t start = offset_of(layout, first);
#pragma unroll
  for (int i = 0; i < kGroup; i += kVec) {
    Acc<T> of_access[kVec];
#pragma unroll
    for (int j = 0; j < kVec; ++j) of_access[j] = factor[i + j];
    apply<T, kVec>(args, start + i, of_access);
  }
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kElementwiseBlock)
    dropout_permuted_groups(const DropoutArgs<T> args, const PermutedLayout layout) {
  const Keep<Acc<T>> keep(args.dropout);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kElementwiseBlock;
  for (int64_t group = static_cast<int64_t>(blockIdx.x) * kElementwiseBlock + threadIdx.x; group * kGroup < args.numel;
       group += step) {
    const int64_t first = group * kGroup;
    if constexpr (kVec > 1) {
      permuted_group<T, kVec>(args, layout, keep, first);
    } else {
      const uint32_t bits = keep.bits_of_group(group);
#pragma unroll 1  // eight copies of the divisions are more than the instruction cache likes
      for (int i = 0; i < kGroup && first + i < args.numel; ++i) {
        const Acc<T> factor[1] = {keep.factor_of_bit(((bits >> i) & 1u) != 0)};
        apply<T, 1>(args, offset_of(layout, first + i), factor);
      }
    }
  }
}

// A tile of elements: majors and minors of one batch. Bits of a row: its minors and the start of its first group.
constexpr int kTileElements = 4096, kMostMajors = 64, kMostMinors = 1024;
constexpr int kTileBytes = kTileElements / kGroup + 2 * kMostMajors;

struct TransposedTiles {
  int majors, minors;  // of a tile; minors is a multiple of 8
  int64_t of_major, of_minor, all;
};

TransposedTiles transposed_tiles(const TransposedLayout& layout) {
  TransposedTiles tiles;
  tiles.majors = static_cast<int>(std::min<int64_t>(layout.major, kMostMajors));
  const int64_t minors = std::min<int64_t>(divide_up(layout.minor, kGroup) * kGroup, kMostMinors);
  tiles.minors = static_cast<int>(std::min<int64_t>(minors, kTileElements / tiles.majors / kGroup * kGroup));
  tiles.of_major = divide_up(layout.major, tiles.majors);
  tiles.of_minor = divide_up(layout.minor, tiles.minors);
  tiles.all = layout.batch * tiles.of_major * tiles.of_minor;
  return tiles;
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kElementwiseBlock)
    dropout_transposed_tiles(const DropoutArgs<T> args, const TransposedLayout layout, const TransposedTiles tiles) {
  using A = Acc<T>;
  __shared__ uint8_t bits[kTileBytes];
  const Keep<A> keep(args.dropout);
  const int pitch = tiles.minors / kGroup + 1;
  for (int64_t tile = blockIdx.x; tile < tiles.all; tile += gridDim.x) {
    const DivMod by_major = divide(tile, tiles.of_major), by_minor = divide(by_major.quotient, tiles.of_minor);
    const int64_t batch = by_minor.quotient, major = by_major.remainder * tiles.majors,
                  minor = by_minor.remainder * tiles.minors;
    const int majors = static_cast<int>(min(static_cast<int64_t>(tiles.majors), layout.major - major));
    const int minors = static_cast<int>(min(static_cast<int64_t>(tiles.minors), layout.minor - minor));
    const int64_t first = (batch * layout.major + major) * layout.minor + minor;  // logical, of the tile's row 0
    for (int i = threadIdx.x; i < majors * pitch; i += kElementwiseBlock) {
      const int row = i / pitch, byte = i % pitch;
      const int64_t group = (first + row * layout.minor) / kGroup + byte;
      bits[i] = static_cast<uint8_t>(keep.bits_of_group(group));
    }
    __syncthreads();
    const int accesses = majors / kVec;
    const int64_t start = (batch * layout.minor + minor) * layout.major + major;  // in memory
    for (int i = threadIdx.x; i < minors * accesses; i += kElementwiseBlock) {
      const int position = i / accesses, row = i % accesses * kVec;
      A factor[kVec];
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const int phase = static_cast<int>((first + (row + j) * layout.minor) & (kGroup - 1)) + position;
        factor[j] = keep.factor_of_bit(((bits[(row + j) * pitch + phase / kGroup] >> (phase % kGroup)) & 1) != 0);
      }
      apply<T, kVec>(args, start + position * layout.major + row, factor);
    }
    __syncthreads();  // the bits are written again
  }
}

template <typename T, int kVec>
bool operands_aligned(const DropoutArgs<T>& args) {
  return is_base_aligned<kVec>(args.x) && is_base_aligned<kVec>(args.residual) && is_base_aligned<kVec>(args.y);
}

}  // namespace

template <typename T>
Status dropout_transposed(const DropoutArgs<T>& args, const TransposedLayout& layout, const Launch& where) {
  constexpr int kVec = kWidest<T>;
  const TransposedTiles tiles = transposed_tiles(layout);
  const dim3 grid(static_cast<unsigned>(elementwise_blocks(tiles.all, where)));
  const bool aligned = operands_aligned<T, kVec>(args) && layout.major % kVec == 0;
  return launch(where, aligned ? dropout_transposed_tiles<T, kVec> : dropout_transposed_tiles<T, 1>, grid,
                kElementwiseBlock, 0, args, layout, tiles);
}

template <typename T>
Status dropout_permuted(const DropoutArgs<T>& args, const PermutedLayout& layout, const Launch& where) {
  constexpr int kVec = kWidest<T>;
  const int last = layout.dims - 1;
  bool whole = operands_aligned<T, kVec>(args) && layout.strides[last] == 1 && layout.sizes[last] % kGroup == 0;
  for (int d = 0; d < last; ++d) whole = whole && layout.strides[d] % kVec == 0;
  const int64_t tiles = divide_up(args.numel, int64_t{kElementwiseBlock} * kGroup);
  const dim3 grid(static_cast<unsigned>(elementwise_blocks(tiles, where)));
  return launch(where, whole ? dropout_permuted_groups<T, kVec> : dropout_permuted_groups<T, 1>, grid,
                kElementwiseBlock, 0, args, layout);
}

template Status dropout_transposed(const DropoutArgs<float>&, const TransposedLayout&, const Launch&);
template Status dropout_transposed(const DropoutArgs<double>&, const TransposedLayout&, const Launch&);
template Status dropout_transposed(const DropoutArgs<BF16>&, const TransposedLayout&, const Launch&);
template Status dropout_transposed(const DropoutArgs<F16>&, const TransposedLayout&, const Launch&);
template Status dropout_permuted(const DropoutArgs<float>&, const PermutedLayout&, const Launch&);
template Status dropout_permuted(const DropoutArgs<double>&, const PermutedLayout&, const Launch&);
template Status dropout_permuted(const DropoutArgs<BF16>&, const PermutedLayout&, const Launch&);
template Status dropout_permuted(const DropoutArgs<F16>&, const PermutedLayout&, const Launch&);

}  // namespace tilewright::gpu

// Elementwise dropout over contiguous memory: one launch, each thread a few groups of eight elements, loaded before the
// first Philox round so that the rounds run while the loads are under way.
//
//   tile     256 threads x 2 groups (float64: 1)
//   group    8 elements = 16 bytes, 2 x 16, 4 x 16: one call of Philox
#include "cuda/elementwise.cuh"
#include "cuda/keep.cuh"

namespace tilewright::gpu {
namespace {

// Beside the rounds of Philox more than two groups cost so many registers that fewer bytes are in flight, not more.
template <typename T>
constexpr int kDropoutGroups = sizeof(T) == 8 ? 1 : 2;

// Blocks of a multiprocessor that the registers must suffice for: 64 a thread without bias and bits.
template <typename T, int kVec, bool kPlain>
constexpr int kDropoutBlocks = kShortConversions && sizeof(T) == 2 && kVec > 1 && kPlain ? 4 : 3;

// factor[i] of a group, from the bits made before or from Philox; the bits may be wanted by a later call.
template <bool kBits, typename T>
__device__ __forceinline__ void group_factors(const DropoutArgs<T>& args, const Keep<Acc<T>>& keep, int64_t group,
                                              Acc<T> (&factor)[kGroup]) {
  if constexpr (kBits) {
    if (args.kept != nullptr) return keep.factors_of_bits(args.kept[group], factor);
    if (args.keep != nullptr) {
      const uint32_t bits = keep.bits_of_group(group);
      args.keep[group] = static_cast<uint8_t>(bits);
      return keep.factors_of_bits(bits, factor);
    }
  }
  keep.factors(group * kGroup, factor);
}

// v[i] += bias of element first + i
template <int kVec, typename T>
__device__ __forceinline__ void add_bias(const DropoutArgs<T>& args, int64_t first, Acc<T> (&v)[kGroup]) {
  const Parameter<T> bias{args.bias, args.wide_bias};
  int64_t column = divide(first, args.cols).remainder;
  if (kVec > 1 && args.cols % kGroup == 0) {
#pragma unroll
    for (int i = 0; i < kGroup; i += kVec) {
      Acc<T> value[kVec];
      bias.template read<kVec>(column + i, Acc<T>(0), value);
#pragma unroll
      for (int j = 0; j < kVec; ++j) v[i + j] += value[j];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    Acc<T> value[1];
    bias.template read<1>(column, Acc<T>(0), value);
    v[i] += value[0];
    column = column + 1 == args.cols ? 0 : column + 1;
  }
}

// The elements behind the last whole group, and the spare bytes behind the bits.
template <bool kBias, bool kBits, typename T>
__device__ void dropout_tail(const DropoutArgs<T>& args, const Keep<Acc<T>>& keep) {
  using A = Acc<T>;
  const int64_t group = args.numel / kGroup;
  const int count = static_cast<int>(args.numel % kGroup);
  if (count > 0) {
    A factor[kGroup], v[kGroup] = {};
    group_factors<kBits>(args, keep, group, factor);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (i < count) v[i] = widen(args.x[group * kGroup + i]);
    }
    if (kBias && args.bias != nullptr) add_bias<1>(args, group * kGroup, v);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (i >= count) continue;
      const int64_t at = group * kGroup + i;
      v[i] *= factor[i];
      if (args.residual != nullptr) v[i] += widen(args.residual[at]);
      args.y[at] = narrow<T>(v[i]);
    }
  }
  if (kBits && args.keep != nullptr) {
    const int64_t bytes = (args.numel + kGroup - 1) / kGroup;
    for (int i = 0; i < kBitsSpare; ++i) args.keep[bytes + i] = 0;
  }
}

template <typename T, int kVec, bool kBias, bool kBits>
__global__ void __launch_bounds__(kElementwiseBlock, (kDropoutBlocks<T, kVec, !kBias && !kBits>))
    dropout_groups(const DropoutArgs<T> args) {
  using A = Acc<T>;
  constexpr int kGroups = kDropoutGroups<T>;
  const Keep<A> keep(args.dropout);
  const int64_t groups = args.numel / kGroup, step = static_cast<int64_t>(gridDim.x) * kElementwiseBlock * kGroups;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kElementwiseBlock * kGroups + threadIdx.x; first < groups;
       first += step) {
    Group<T, kVec> x[kGroups], residual[kGroups];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int64_t group = first + g * kElementwiseBlock;
      if (group >= groups) continue;
      x[g].load(args.x + group * kGroup);
      if (args.residual != nullptr) residual[g].load(args.residual + group * kGroup);
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int64_t group = first + g * kElementwiseBlock;
      if (group >= groups) continue;
      A factor[kGroup], v[kGroup];
      group_factors<kBits>(args, keep, group, factor);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) v[i] = x[g].get(i);
      if (kBias && args.bias != nullptr) add_bias<kVec>(args, group * kGroup, v);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) v[i] *= factor[i];
      if (args.residual != nullptr) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) v[i] += residual[g].get(i);
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i) x[g].set(i, v[i]);
      x[g].store(args.y + group * kGroup);
    }
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) dropout_tail<kBias, kBits>(args, keep);
}

__global__ void __launch_bounds__(kElementwiseBlock)
    dropout_mask_groups(const Dropout<float> dropout, uint8_t* mask, int64_t numel) {
  const Keep<float> keep(dropout);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kElementwiseBlock;
  for (int64_t group = static_cast<int64_t>(blockIdx.x) * kElementwiseBlock + threadIdx.x; group * kGroup < numel;
       group += step) {
    const uint32_t bits = keep.bits_of_group(group);
    Pack<uint8_t, kGroup> bytes;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) bytes.value[i] = static_cast<uint8_t>((bits >> i) & 1u);
    if (group * kGroup + kGroup <= numel) {
      *reinterpret_cast<Pack<uint8_t, kGroup>*>(mask + group * kGroup) = bytes;
    } else {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (group * kGroup + i < numel) mask[group * kGroup + i] = bytes.value[i];
      }
    }
  }
}

template <typename T, int kVec, bool kBias, bool kBits>
Status launch_groups(const DropoutArgs<T>& args, const Launch& where) {
  const int64_t tiles = divide_up(args.numel, int64_t{kElementwiseBlock} * kGroup * kDropoutGroups<T>);
  return launch(where, dropout_groups<T, kVec, kBias, kBits>,
                dim3(static_cast<unsigned>(elementwise_blocks(tiles, where))), kElementwiseBlock, 0, args);
}

}  // namespace

template <typename T>
Status dropout_contiguous(const DropoutArgs<T>& args, const Launch& where) {
  constexpr int kVec = kWidest<T>;
  const bool aligned = is_base_aligned<kVec>(args.x) && is_base_aligned<kVec>(args.residual) &&
                       is_base_aligned<kVec>(args.y) && is_base_aligned<kVec>(static_cast<const T*>(args.bias));
  if (!aligned) return launch_groups<T, 1, true, true>(args, where);
  if (args.keep != nullptr || args.kept != nullptr) return launch_groups<T, kVec, false, true>(args, where);
  if (args.bias != nullptr) return launch_groups<T, kVec, true, false>(args, where);
  return launch_groups<T, kVec, false, false>(args, where);
}

Status dropout_mask(const Dropout<float>& dropout, uint8_t* mask, int64_t numel, const Launch& where) {
  const int64_t tiles = divide_up(numel, int64_t{kElementwiseBlock} * kGroup);
  return launch(where, dropout_mask_groups, dim3(static_cast<unsigned>(elementwise_blocks(tiles, where))),
                kElementwiseBlock, 0, dropout, mask, numel);
}

template Status dropout_contiguous(const DropoutArgs<float>&, const Launch&);
template Status dropout_contiguous(const DropoutArgs<double>&, const Launch&);
template Status dropout_contiguous(const DropoutArgs<BF16>&, const Launch&);
template Status dropout_contiguous(const DropoutArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu

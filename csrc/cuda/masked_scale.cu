// masked_scale: one launch over memory, 8 mask bytes and 64 bytes of x a thread at a time. A masked element is x * 0 as
// in native, so NaN and Inf show.
#include "cuda/masked_scale.h"

#include "cuda/elementwise.cuh"

namespace tilewright::gpu {
namespace {

template <typename T, int kVec>
__global__ void __launch_bounds__(kElementwiseBlock) masked_scale_groups(const MaskedScaleArgs<T> args) {
  using A = Acc<T>;
  constexpr int kGroups = kGroupsOfThread<T>, kMaskVec = kVec > 1 ? kGroup : 1;
  const int64_t groups = args.numel / kGroup, step = static_cast<int64_t>(gridDim.x) * kElementwiseBlock * kGroups;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kElementwiseBlock * kGroups + threadIdx.x; first < groups;
       first += step) {
    Group<T, kVec> x[kGroups];
    Pack<uint8_t, kMaskVec> mask[kGroups][kGroup / kMaskVec];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int64_t at = (first + g * kElementwiseBlock) * kGroup;
      if (at >= groups * kGroup) continue;
      x[g].load(args.x + at);
#pragma unroll
      for (int i = 0; i < kGroup / kMaskVec; ++i) {
        mask[g][i] = *reinterpret_cast<const Pack<uint8_t, kMaskVec>*>(args.mask + at + i * kMaskVec);
      }
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int64_t at = (first + g * kElementwiseBlock) * kGroup;
      if (at >= groups * kGroup) continue;
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        x[g].set(i, x[g].get(i) * (mask[g][i / kMaskVec].value[i % kMaskVec] != 0 ? args.scale : A(0)));
      }
      x[g].store(args.y + at);
    }
  }
  if (blockIdx.x == 0 && threadIdx.x < args.numel % kGroup) {
    const int64_t at = groups * kGroup + threadIdx.x;
    A x[1];
    load<1>(args.x + at, x);
    x[0] *= args.mask[at] != 0 ? args.scale : A(0);
    store<1>(args.y + at, x);
  }
}

}  // namespace

template <typename T>
Status masked_scale(const MaskedScaleArgs<T>& args, const Launch& where) {
  constexpr int kVec = kWidest<T>;
  const bool aligned =
      is_base_aligned<kVec>(args.x) && is_base_aligned<kVec>(args.y) && is_base_aligned<kGroup>(args.mask);
  const int64_t tiles = divide_up(args.numel, int64_t{kElementwiseBlock} * kGroup * kGroupsOfThread<T>);
  return launch(where, aligned ? masked_scale_groups<T, kVec> : masked_scale_groups<T, 1>,
                dim3(static_cast<unsigned>(elementwise_blocks(tiles, where))), kElementwiseBlock, 0, args);
}

template Status masked_scale(const MaskedScaleArgs<float>&, const Launch&);
template Status masked_scale(const MaskedScaleArgs<double>&, const Launch&);
template Status masked_scale(const MaskedScaleArgs<BF16>&, const Launch&);
template Status masked_scale(const MaskedScaleArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu

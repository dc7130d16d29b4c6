// masked_scale on the GPU: y = x * (mask ? scale : 0), elementwise over memory.
#pragma once
#include "common/types.h"
#include "cuda/launch.h"

namespace tilewright::gpu {

template <typename T>
struct MaskedScaleArgs {
  const T* x;
  const uint8_t* mask;  // 0: dropped
  T* y;
  int64_t numel;
  Acc<T> scale;
};

template <typename T>
Status masked_scale(const MaskedScaleArgs<T>& args, const Launch& launch);

}  // namespace tilewright::gpu

// What every CPU op with dropout shares: the rule from a seed tensor, and how a tensor's memory is ordered.
#pragma once
#include <c10/util/SmallVector.h>

#include "common/philox.h"
#include "cpu/tensors.h"

namespace tilewright {

inline DropoutRule dropout_rule_of(const Tensor& seed, double p, const char* op) {
  TORCH_CHECK(seed.defined() && seed.scalar_type() == at::kLong && seed.numel() == 1 && seed.device().is_cpu(), op,
              ": seed must be one int64 on the CPU, as dropout_seed makes it, got ", seed.numel(), " of ",
              seed.scalar_type(), " on ", seed.device());
  TORCH_CHECK(p >= 0 && p <= 1, op, ": dropout probability has to be between 0 and 1, but got ", p);
  return dropout_rule(static_cast<uint64_t>(*seed.const_data_ptr<int64_t>()), p);
}

// A dense tensor's dimensions in logical order, without those of size 1 and with neighbours merged that are one run in
// memory.
struct MergedDims {
  c10::SmallVector<int64_t, 6> sizes;
  c10::SmallVector<int64_t, 6> strides;
};

inline MergedDims merged_dims(const Tensor& tensor) {
  MergedDims merged;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    const int64_t size = tensor.size(d), stride = tensor.stride(d);
    if (size == 1) continue;
    if (!merged.sizes.empty() && merged.strides.back() == size * stride) {
      merged.sizes.back() *= size;
      merged.strides.back() = stride;
    } else {
      merged.sizes.push_back(size);
      merged.strides.push_back(stride);
    }
  }
  if (merged.sizes.empty()) {
    merged.sizes.push_back(1);
    merged.strides.push_back(1);
  }
  return merged;
}

}  // namespace tilewright

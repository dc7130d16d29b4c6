// How a tensor's memory is ordered: for ops whose result depends on logical indices (dropout's mask) and whose output
// has the layout of native's pointwise ops.
#pragma once
#include <c10/util/SmallVector.h>

#include "ops/library.h"

namespace tilewright {

// The result that a pointwise op of native makes for a tensor and its empty_like: dense, in the tensor's own order.
Tensor empty_pointwise(const Tensor& tensor);

// The tensor itself where its elements lie in memory as output's do, else a copy that does. output is dense.
Tensor ordered_like(const Tensor& tensor, const Tensor& output);

// A tensor's dimensions in logical order, without those of size 1 and with neighbours merged that are one run in
// memory.
struct MergedDims {
  c10::SmallVector<int64_t, 6> sizes;
  c10::SmallVector<int64_t, 6> strides;
};
MergedDims merged_dims(at::IntArrayRef sizes, at::IntArrayRef strides);

// Merged dims [batch,] major, minor whose memory is [batch,] minor, major: channels_last (major = channels, minor =
// pixels), transposed matrices.
struct TransposedDims {
  int64_t batch, major, minor;
};
std::optional<TransposedDims> find_transposed(const MergedDims& dims);

}  // namespace tilewright

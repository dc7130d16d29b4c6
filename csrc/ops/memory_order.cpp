#include "ops/memory_order.h"

#include <ATen/TensorIterator.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>

namespace tilewright {

Tensor empty_pointwise(const Tensor& tensor) {
  for (const auto format : {at::MemoryFormat::Contiguous, at::MemoryFormat::ChannelsLast}) {
    if (tensor.is_contiguous(format)) return at::empty_like(tensor, tensor.options().memory_format(format));
  }
  if (tensor.is_non_overlapping_and_dense()) return at::empty_like(tensor);
  return at::TensorIteratorConfig()
      .add_owned_output(Tensor())
      .add_const_input(tensor)
      .add_owned_const_input(at::empty_like(tensor))
      .build()
      .output();
}

Tensor ordered_like(const Tensor& tensor, const Tensor& output) {
  bool same_order = true;
  for (int64_t d = 0; d < output.dim(); ++d) {
    same_order = same_order && (output.size(d) == 1 || tensor.stride(d) == output.stride(d));
  }
  if (same_order || output.numel() == 0) return tensor;
  Tensor copy = at::empty_strided(output.sizes(), output.strides(), tensor.options());
  copy.copy_(tensor);
  return copy;
}

MergedDims merged_dims(at::IntArrayRef sizes, at::IntArrayRef strides) {
  MergedDims merged;
  for (size_t d = 0; d < sizes.size(); ++d) {
    const int64_t size = sizes[d], stride = strides[d];
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

std::optional<TransposedDims> find_transposed(const MergedDims& dims) {
  const size_t rank = dims.sizes.size();
  if (rank < 2 || rank > 3) return std::nullopt;
  const int64_t major = dims.sizes[rank - 2], minor = dims.sizes[rank - 1];
  if (dims.strides[rank - 2] != 1 || dims.strides[rank - 1] != major) return std::nullopt;
  if (rank == 3 && dims.strides[0] != major * minor) return std::nullopt;
  return TransposedDims{rank == 3 ? dims.sizes[0] : 1, major, minor};
}

}  // namespace tilewright

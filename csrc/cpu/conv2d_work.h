// What the ways of a convolution share: scratch, the cutting of work into items, the bias's gradient.
#pragma once
#include <ATen/ops/sum.h>

#include "cpu/conv2d_windows.h"
#include "cpu/scratch_tensor.h"

namespace tilewright {

constexpr int kConvScratchSlot = 2;

template <typename A>
A* conv_scratch(int64_t elements = kConvScratchElements) {
  return static_cast<A*>(thread_scratch(kConvScratchSlot, elements * sizeof(A)));
}

// A stretch cut into equal pieces whose ends are multiples of unit.
struct Cut {
  int64_t size, pieces, unit;
  int64_t at(int64_t piece) const { return std::min(size, divide_up(divide_up(size, unit) * piece, pieces) * unit); }
};

// Blocks of pixels and parts of the filters: every block reads a part's weights, every part the block's images. The
// least that is read in all, with enough items for many threads. Parts of fewer than kFew panels have as many each: a
// thread may get whole parts, and one panel more than another's is a third or half of its work; of more, at most a
// quarter.
struct WorkCut {
  int64_t blocks = 0, parts = 0;
  // most_pixels of a block; panels: the filters' units; bytes that all filters' weights and all images have.
  WorkCut(int64_t pixels, int64_t most_pixels, int64_t panels, double weight_bytes, double image_bytes) {
    constexpr int64_t kItems = 16, kFew = 4;
    double least = 0;
    for (int64_t p = 1; p <= panels; ++p) {
      if (panels % p != 0 && panels / p < kFew) continue;
      const int64_t b = std::min(pixels, std::max(divide_up(pixels, most_pixels), divide_up(kItems, p)));
      if (b * p < std::min(kItems, pixels * panels)) continue;
      const double read = static_cast<double>(b) * weight_bytes + static_cast<double>(p) * image_bytes;
      if (parts == 0 || read < least) {
        least = read;
        blocks = b;
        parts = p;
      }
    }
  }
};

// The weights of all groups in panels of `Packed`: pack(weights of a group, panel, the group's panels), which take
// group_size elements.
template <typename Packed, typename T, typename Pack>
Tensor pack_panels(const WeightLayout& layout, const T* data, int64_t group_stride, int64_t groups, int64_t panels,
                   int64_t group_size, const at::TensorOptions& options, const Pack& pack) {
  Tensor packed = scratch_tensor({groups * group_size}, options);
  Packed* out = mutable_data<Packed>(packed);
  parallel_for_cost(groups * panels, group_size / panels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / panels;
      pack(layout.at(data + group * group_stride), i % panels, out + group * group_size);
    }
  });
  return packed;
}

// In the accumulation type.
template <typename T>
Tensor bias_grad(const Conv2dShape& shape, const Tensor& dy) {
  auto grad = images_of(dy, const_data<T>(dy), shape.format);
  join_rows(grad);
  const int64_t pixels = shape.images * shape.out[0] * shape.out[1], F = shape.filters;
  constexpr int64_t kChunks = 16, kFilters = 64, kMinElements = 16384;
  const Cut chunks{pixels, std::min(kChunks, divide_up(pixels * F, kMinElements)), 1};
  const Cut filters{F, divide_up(F, kFilters), kFilters};
  Tensor sums = at::empty({chunks.pieces, F}, dy.options().dtype(accumulation_dtype(dy.scalar_type())));
  parallel_for_cost(chunks.pieces * filters.pieces, pixels * F / chunks.pieces / filters.pieces,
                    [&](int64_t begin, int64_t end) {
                      for (int64_t i = begin; i < end; ++i) {
                        const int64_t chunk = i / filters.pieces, part = i % filters.pieces;
                        kernels<T>().conv2d.bias_grad(grad, chunks.at(chunk), chunks.at(chunk + 1), filters.at(part),
                                                      filters.at(part + 1), mutable_data<Acc<T>>(sums) + chunk * F);
                      }
                    });
  return chunks.pieces > 1 ? sums.sum(0) : sums[0];
}

}  // namespace tilewright

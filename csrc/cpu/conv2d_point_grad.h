// The weights' gradient of 1x1 kernels in parts of bfloat16 (kernels/conv2d_point_grad.h): how pixels and filters are
// cut.
#pragma once
#include "cpu/conv2d_pairs_weight_grad.h"

namespace tilewright {

// Dense images of either format as the kernel sees them.
template <typename T>
PointImages<T> point_images(const Tensor& images) {
  const int64_t pixels = images.size(2) * images.size(3), channels = images.size(1);
  const T* data = const_data<T>(images);
  const bool last = images.is_contiguous(at::MemoryFormat::ChannelsLast);
  return last ? PointImages<T>{data, channels * pixels, channels, 1}
              : PointImages<T>{data, channels * pixels, 1, pixels};
}
template <typename T>
PointImages<T> from_channel(const PointImages<T>& images, int64_t channel) {
  PointImages<T> result = images;
  result.data += channel * images.channel;
  return result;
}

// dy and x dense, each in a format of its own; x has the pixels that are read.
template <typename T>
void point_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x, const Tensor& dweight,
                       SumReport& report) {
  const auto& kernel = kernels<T>().conv2d.pairs;
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t pixels = shape.out[0] * shape.out[1];
  const PointImages<T> grad = point_images<T>(dy), in = point_images<T>(x);
  // Pixels of all images follow each other, or those of one do.
  const bool joined = grad.channel == 1 && in.channel == 1;
  // Parts of the filters pack x again each; chunks of pixels have sums of their own.
  constexpr int64_t kItems = 8, kFewestFilters = 256, kFewestBlocks = 2;
  const Cut parts{F, std::min(kItems, divide_up(F, kFewestFilters)), kernel.panel};
  const int64_t wanted = divide_up(kItems, parts.pieces * shape.groups);
  const PointBlocks blocks =
      joined ? PointBlocks(1, shape.images * pixels, wanted) : PointBlocks(shape.images, pixels, 1);
  const Cut chunks{blocks.count(), std::min(wanted, divide_up(blocks.count(), kFewestBlocks)), 1};
  // Those of a single chunk are the weights.
  const bool is_direct = std::is_same_v<T, float> && chunks.pieces == 1;
  const Tensor sums =
      is_direct ? dweight : scratch_tensor({chunks.pieces, shape.filters, C}, dy.options().dtype(at::kFloat));
  const int64_t items = parts.pieces * chunks.pieces;
  const int64_t cost = pairs_cost<T>(shape.images * pixels / chunks.pieces * (C + 1) * (F / parts.pieces + 1));
  parallel_for_cost(shape.groups * items, cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / items, chunk = i % items / parts.pieces, part = i % parts.pieces;
      const ConvPointGradArgs<T> args{from_channel(grad, group * F),
                                      from_channel(in, group * C),
                                      blocks,
                                      C,
                                      mutable_data<float>(sums) + (chunk * shape.filters + group * F) * C,
                                      C};
      const int64_t first = parts.at(part), last = parts.at(part + 1);
      report.add(kernel.point_weight_grad(
          args, chunks.at(chunk), chunks.at(chunk + 1), first, last,
          thread_scratch(kConvScratchSlot, kernel.point_weight_grad_bytes(args, last - first))));
    }
  });
  if (!is_direct) finish_pair_weights<T>(shape, sums, dweight, &report);
}

}  // namespace tilewright

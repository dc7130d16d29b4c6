// Depthwise convolution on the CPU (kernels/depthwise.h), and groups of a few channels, which are summed the same way:
// rows of all images over threads for channels_last, planes for contiguous images. Gradients:
// conv2d_depthwise_input_grad.h, conv2d_depthwise_grad.h.
#pragma once
#include <ATen/ops/index_select.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/tensor.h>

#include <functional>

#include "cpu/conv2d_work.h"

namespace tilewright {

inline bool is_depthwise(const Conv2dShape& shape) { return shape.groups == shape.channels && shape.groups > 1; }

// Whether the data gradient's columns are pairs of an even and an odd one, each with taps
// (kernels/depthwise_planes_grad.h).
inline bool has_column_pairs(const Conv2dShape& shape) {
  return shape.stride[0] == 2 && shape.stride[1] == 2 && shape.dilation[0] % 2 == 1 && shape.dilation[1] % 2 == 1 &&
         shape.kernel[0] > 1 && shape.kernel[1] > 1 && shape.height > 1 && shape.width > 1;
}

// Whether a large window's planes go straight through their rows, both passes (kernels/depthwise_planes_window.h).
inline bool centres_window(const Conv2dShape& shape, at::ScalarType dtype) {
  const bool is_dense =
      accumulation_dtype(dtype) == at::kFloat && shape.stride[0] == 1 && shape.stride[1] == 1 && !is_dilated(shape);
  return is_dense && shape.kernel[0] == 7 && shape.kernel[1] == 7 && shape.padding[1] == 3;
}

// Whether the data gradient of stride 2 in channels_last has strips (kernels/depthwise_last_window_grad.h) where the
// table has that kernel.
inline bool centres_gradient(const Conv2dShape& shape) {
  const int64_t side = shape.kernel[0];
  const bool is_small = (side == 3 || side == 5) && shape.kernel[1] == side && !is_dilated(shape);
  return is_depthwise(shape) && has_column_pairs(shape) && is_small && shape.padding[0] == side / 2 &&
         shape.padding[1] == side / 2;
}

// Groups of 4 or 8 channels and as many filters, whose windows the kernel holds in registers.
inline bool is_small_groups(const Conv2dShape& shape, at::ScalarType dtype) {
  const int64_t group = shape.channels / shape.groups;
  const bool fits = dtype == at::kFloat && shape.groups > 1 && shape.filters == shape.channels &&
                    shape.kernel[1] <= kMostGroupCols && shape.stride[1] <= kMostGroupStride && !is_dilated(shape);
  return fits && (group == 4 || group == 8) && group <= kernels<float>().conv2d.row_lanes;
}

// Rows of the output per block, so that what a block reads stays in L1 or close by.
template <typename Scratch>
int64_t plane_rows(int64_t height, const Scratch& scratch) {
  constexpr int64_t kElements = 16384, kFewestRows = 4;
  int64_t rows = height;
  while (rows > kFewestRows && scratch(rows) > kElements) rows = divide_up(rows, 2);
  return rows;
}
template <typename T>
int64_t plane_rows(const ConvWindow& window) {
  return plane_rows(window.height, [&](int64_t rows) { return kernels<T>().depthwise.planes_scratch(window, rows); });
}

// Sums over planes [plane_begin, plane_end), in blocks of `rows` of their `height` rows: compute(first plane, last,
// first row, last, scratch).
template <typename A>
struct PlaneBlocks {
  int64_t height, rows, cost, scratch_elements;
  std::function<void(int64_t, int64_t, int64_t, int64_t, A*)> compute;

  void run(int64_t plane_begin, int64_t plane_end, int64_t block, A* scratch) const {
    compute(plane_begin, plane_end, block * rows, std::min(height, (block + 1) * rows), scratch);
  }
  int64_t blocks() const { return divide_up(height, rows); }
};

template <typename A>
void run_planes(int64_t planes, const PlaneBlocks<A>& sums) {
  parallel_for_cost(planes * sums.blocks(), sums.cost, [&](int64_t begin, int64_t end) {
    A* scratch = conv_scratch<A>(sums.scratch_elements);
    while (begin < end) {
      const int64_t plane = begin % planes, count = std::min(planes - plane, end - begin);
      sums.run(plane, plane + count, begin / planes, scratch);
      begin += count;
    }
  });
}

template <typename T>
PlaneBlocks<Acc<T>> plane_blocks(const ConvDepthwiseArgs<T>& args) {
  const int64_t rows = plane_rows<T>(args.window);
  const int64_t cost = rows * args.window.width * (args.window.rows * args.window.cols + 4) / 8;
  const auto& kernel = kernels<T>().depthwise;
  return {args.window.height, rows, cost, kernel.planes_scratch(args.window, rows),
          [args, &kernel](auto... block) { kernel.planes(args, block...); }};
}

template <typename T>
void run_last(const ConvDepthwiseArgs<T>& args) {
  const int64_t sums = args.group * args.window.rows * args.window.cols;
  const int64_t cost = args.window.width * args.channels * (sums + 4) / 8;
  parallel_for_cost(args.images * args.window.height, cost,
                    [&](int64_t begin, int64_t end) { kernels<T>().depthwise.last(args, begin, end); });
}

// Weights [filters, channels of a group, taps] in the accumulation type, as the kernel of this format reads them.
// `taps` are a data gradient's, in its order, which sums over filters instead of channels; none: the forward's.
inline Tensor depthwise_weights(const Conv2dShape& shape, const Tensor& weight, const std::vector<int64_t>& taps = {}) {
  const int64_t group = weight.size(1), taps_in_all = shape.kernel[0] * shape.kernel[1];
  Tensor grouped = as_accumulator(weight, weight.scalar_type())
                       .view({shape.filters / group, group, group, taps_in_all});  // group, filter, channel, tap
  if (!taps.empty()) grouped = grouped.index_select(3, at::tensor(taps));
  if (shape.format != at::MemoryFormat::ChannelsLast) return grouped.view({shape.filters, -1});
  return grouped.permute(taps.empty() ? at::IntArrayRef{3, 2, 0, 1} : at::IntArrayRef{3, 1, 0, 2}).contiguous();
}

// Every channel once per filter that reads it: [N, C, H, W] -> [N, C * multiplier, H, W].
inline Tensor repeat_channels(const Conv2dShape& shape, const Tensor& x) {
  const int64_t multiplier = shape.filters / shape.channels;
  return multiplier == 1 ? x : x.repeat_interleave(multiplier, 1).contiguous(shape.format);
}

template <typename T>
void depthwise_forward(const Conv2dShape& shape, const Tensor& x_in, const Tensor& weight_in,
                       const ConvEpilogue<T>& epilogue, const Tensor& output) {
  const bool last = shape.format == at::MemoryFormat::ChannelsLast;
  const Tensor x = last ? repeat_channels(shape, x_in) : x_in;
  const Tensor weight = depthwise_weights(shape, weight_in);
  const int64_t multiplier = last ? 1 : shape.filters / shape.channels;
  const ConvDepthwiseArgs<T> args{images_of(x, const_data<T>(x), shape.format),
                                  images_of(output, mutable_data<T>(output), shape.format),
                                  forward_window(shape),
                                  shape.images,
                                  shape.filters / multiplier,
                                  shape.filters / multiplier,
                                  weight_in.size(1),
                                  multiplier,
                                  const_data<Acc<T>>(weight),
                                  epilogue};
  last ? run_last(args) : run_planes(args.images * shape.filters, plane_blocks(args));
}

}  // namespace tilewright

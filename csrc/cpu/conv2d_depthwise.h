// Depthwise convolution on the CPU (kernels/depthwise.h), and groups of a few channels, which are summed the same way:
// rows of all images over threads for channels_last, planes for contiguous images.
#pragma once
#include <ATen/ops/index_select.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/tensor.h>

#include "cpu/conv2d_work.h"

namespace tilewright {

inline bool is_depthwise(const Conv2dShape& shape) { return shape.groups == shape.channels && shape.groups > 1; }

// Whether the data gradient's columns are pairs of an even and an odd one, each with taps
// (kernels/depthwise_planes_grad.h).
inline bool has_column_pairs(const Conv2dShape& shape) {
  return shape.stride[0] == 2 && shape.stride[1] == 2 && shape.dilation[0] % 2 == 1 && shape.dilation[1] % 2 == 1 &&
         shape.kernel[0] > 1 && shape.kernel[1] > 1 && shape.height > 1 && shape.width > 1;
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

// Calls body(first plane, last, first row, last, scratch) for blocks of `rows` rows of planes.
template <typename A, typename Body>
void for_each_plane_block(int64_t planes, int64_t height, int64_t rows, int64_t cost, int64_t scratch_elements,
                          const Body& body) {
  parallel_for_cost(planes * divide_up(height, rows), cost, [&](int64_t begin, int64_t end) {
    A* scratch = conv_scratch<A>(scratch_elements);
    while (begin < end) {
      const int64_t block = begin / planes, plane = begin % planes, count = std::min(planes - plane, end - begin);
      body(plane, plane + count, block * rows, std::min(height, (block + 1) * rows), scratch);
      begin += count;
    }
  });
}

template <typename T>
void run_planes(const ConvDepthwiseArgs<T>& args) {
  const int64_t planes = args.images * args.channels * args.multiplier, rows = plane_rows<T>(args.window);
  const int64_t cost = rows * args.window.width * (args.window.rows * args.window.cols + 4) / 8;
  const auto& kernel = kernels<T>().depthwise;
  for_each_plane_block<Acc<T>>(planes, args.window.height, rows, cost, kernel.planes_scratch(args.window, rows),
                               [&](auto... block) { kernel.planes(args, block...); });
}

template <typename T>
void run_last(const ConvDepthwiseArgs<T>& args) {
  const int64_t sums = args.group * args.window.rows * args.window.cols;
  const int64_t cost = args.window.width * args.channels * (sums + 4) / 8;
  parallel_for_cost(args.images * args.window.height, cost,
                    [&](int64_t begin, int64_t end) { kernels<T>().depthwise.last(args, begin, end); });
}

// The data gradient of strides: bands of rows of all classes of pixels in turn, so that dy is read from memory once.
template <typename T>
void run_last(const std::vector<ConvDepthwiseArgs<T>>& classes) {
  if (classes.empty()) return;
  if (classes.size() == 1) return run_last(classes.front());
  int64_t height = 0, row_cost = 0;
  for (const auto& args : classes) {
    height = std::max(height, args.window.height);
    row_cost += args.window.width * args.channels * (args.group * args.window.rows * args.window.cols + 4) / 8;
  }
  // Enough items for many threads, though every band reads the rows around it as well.
  constexpr int64_t kItems = 16, kMostRows = 8;
  const int64_t images = classes.front().images;
  const int64_t rows = std::min(kMostRows, divide_up(height * images, kItems)), bands = divide_up(height, rows);
  parallel_for_cost(images * bands, rows * row_cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (const auto& args : classes) {
        const int64_t first = i / bands * args.window.height, row = i % bands * rows;
        const int64_t last = std::min(args.window.height, row + rows);
        if (row < last) kernels<T>().depthwise.last(args, first + row, first + last);
      }
    }
  });
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
                                  weight_in.size(1),
                                  multiplier,
                                  const_data<Acc<T>>(weight),
                                  epilogue};
  last ? run_last(args) : run_planes(args);
}

// The four classes of stride 2, where each has pixels and taps.
template <typename T>
void run_planes_classes(const std::vector<ConvDepthwiseArgs<T>>& classes, const ConvImages<T>& dx) {
  TORCH_INTERNAL_ASSERT(classes.size() == 4, "conv2d_backward: ", classes.size(), " classes of pixels, expected 4");
  ConvDepthwiseClasses<T> args{classes[0].in, dx, {}, classes[0].images, classes[0].channels, {}};
  int64_t taps = 0;
  for (int i = 0; i < 4; ++i) {
    args.windows[i] = classes[i].window;
    args.weights[i] = classes[i].weight;
    taps += classes[i].window.rows * classes[i].window.cols;
  }
  const auto& kernel = kernels<T>().depthwise;
  const int64_t height = args.windows[0].height, planes = args.images * args.channels;
  const int64_t rows =
      plane_rows(height, [&](int64_t rows) { return kernel.planes_classes_scratch(args.windows, rows); });
  const int64_t cost = rows * args.windows[0].width * (taps + 8) / 8;
  for_each_plane_block<Acc<T>>(planes, height, rows, cost, kernel.planes_classes_scratch(args.windows, rows),
                               [&](auto... block) { kernel.planes_classes(args, block...); });
}

// dx of [N, filters, H, W]: one plane per filter; the caller sums those of one channel.
template <typename T>
void depthwise_input_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight_in, const Tensor& dx) {
  const bool last = shape.format == at::MemoryFormat::ChannelsLast;
  std::vector<Tensor> weights;
  std::vector<ConvDepthwiseArgs<T>> classes;
  for (const GradientClass& part : gradient_classes(shape)) {
    if (part.taps() == 0) continue;  // dx is zero there
    std::vector<int64_t> taps;
    for (int64_t i = 0; i < part.y.count; ++i) {
      for (int64_t j = 0; j < part.x.count; ++j) {
        taps.push_back(part.y.kernel_index(i) * shape.kernel[1] + part.x.kernel_index(j));
      }
    }
    weights.push_back(depthwise_weights(shape, weight_in, taps));
    classes.push_back({images_of(dy, const_data<T>(dy), shape.format),
                       images_of_class(shape, part, dx, mutable_data<T>(dx), shape.format),
                       part.window(),
                       shape.images,
                       shape.filters,
                       weight_in.size(1),
                       1,
                       const_data<Acc<T>>(weights.back()),
                       {}});
  }
  if (last) return run_last(classes);
  if (has_column_pairs(shape)) {
    return run_planes_classes(classes, images_of(dx, mutable_data<T>(dx), shape.format));
  }
  for (const auto& args : classes) run_planes(args);
}

// [filters, channels of a group, taps] in the accumulation type.
template <typename T>
Tensor depthwise_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x_in) {
  const bool last = shape.format == at::MemoryFormat::ChannelsLast;
  const Tensor x = last ? repeat_channels(shape, x_in) : x_in;
  const int64_t multiplier = last ? 1 : shape.filters / shape.channels, taps = shape.kernel[0] * shape.kernel[1];
  const int64_t group = is_depthwise(shape) ? 1 : shape.channels / shape.groups, sums_of_filter = group * taps;
  ConvDepthwiseGradArgs<T> args{images_of(x, const_data<T>(x), shape.format),
                                images_of(dy, const_data<T>(dy), shape.format),
                                forward_window(shape),
                                shape.images,
                                shape.filters / multiplier,
                                group,
                                multiplier,
                                nullptr};
  const auto options = dy.options().dtype(accumulation_dtype(dy.scalar_type()));
  const int64_t row_cost = args.window.width * (sums_of_filter + 4) / 8;
  if (!last) {
    Tensor sums = at::zeros({shape.filters, taps}, options);
    args.sums = mutable_data<Acc<T>>(sums);
    const int64_t rows = plane_rows<T>(args.window);
    parallel_for_cost(shape.filters, shape.images * args.window.height * row_cost, [&](int64_t begin, int64_t end) {
      const auto& kernel = kernels<T>().depthwise;
      kernel.planes_weight_grad(args, begin, end, rows, conv_scratch<Acc<T>>(kernel.planes_scratch(args.window, rows)));
    });
    return sums;
  }
  constexpr int64_t kChunks = 16, kMinElements = 16384;
  const int64_t rows = shape.images * args.window.height, elements = rows * args.window.width * shape.filters;
  const Cut chunks{rows, std::min({kChunks, rows, divide_up(elements, kMinElements)}), 1};
  Tensor sums = at::zeros({chunks.pieces, sums_of_filter, shape.filters}, options);
  parallel_for_cost(chunks.pieces, rows / chunks.pieces * shape.filters * row_cost, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      ConvDepthwiseGradArgs<T> part = args;
      part.sums = mutable_data<Acc<T>>(sums) + chunk * sums_of_filter * shape.filters;
      kernels<T>().depthwise.last_weight_grad(part, chunks.at(chunk), chunks.at(chunk + 1));
    }
  });
  return (chunks.pieces > 1 ? sums.sum(0) : sums[0]).view({taps, group, shape.filters}).permute({2, 1, 0});
}

}  // namespace tilewright

// Weight gradients of depthwise convolutions on the CPU, and of groups of a few channels, alone or with the data's: one
// sweep over the images, which finds dy in the cache the second time.
#pragma once
#include "cpu/conv2d_depthwise_input_grad.h"

namespace tilewright {

// --- the weights' gradient: one accumulator per tap ---

// Of dy, which both gradients read, beside what they read and write around it (128 and 256 KB of float32). A band of
// rows reads the rows beside it again, and has twice as many.
constexpr int64_t kElementsInL2 = 32768, kRowElementsInL2 = 65536;

template <typename T>
struct DepthwiseWeightGrad {
  Tensor x;  // as it is read
  ConvDepthwiseGradArgs<T> args;
  int64_t taps, row_cost;
  at::TensorOptions options;  // of the sums

  DepthwiseWeightGrad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x_in)
      : x(shape.format == at::MemoryFormat::ChannelsLast ? repeat_channels(shape, x_in) : x_in) {
    const int64_t multiplier = shape.filters / x.size(1);
    const int64_t group = is_depthwise(shape) ? 1 : shape.channels / shape.groups;
    args = {images_of(x, const_data<T>(x), shape.format),
            images_of(dy, const_data<T>(dy), shape.format),
            forward_window(shape),
            shape.images,
            x.size(1),
            x.size(1),
            group,
            multiplier,
            nullptr};
    taps = shape.kernel[0] * shape.kernel[1];
    row_cost = args.window.width * (group * taps + 4) / 8;
    options = dy.options().dtype(accumulation_dtype(dy.scalar_type()));
  }
};

// Sums [filters, taps]. before(first filter, last, first image, last) is called as a thread comes to a block of planes.
template <typename T, typename Before>
Tensor planes_weight_grad(const Conv2dShape& shape, const DepthwiseWeightGrad<T>& grad, const Before& before) {
  const auto& kernel = kernels<T>().depthwise;
  const ConvWindow& window = grad.args.window;
  const int64_t plane = window.height * window.width, rows = plane_rows<T>(window);
  // Small planes of all images, because sums of lanes are added up once for each block; neighbouring planes of large
  // ones.
  const bool small = shape.images * plane <= kElementsInL2;
  const int64_t images = small ? shape.images : 1;
  const int64_t filters = std::max<int64_t>(1, kElementsInL2 / (images * plane));
  Tensor sums = at::zeros({shape.filters, grad.taps}, grad.options);
  parallel_for_cost(shape.filters, shape.images * window.height * grad.row_cost, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += filters) {
      const int64_t last = std::min(end, first + filters);
      for (int64_t n = 0; n < shape.images; n += images) {
        ConvDepthwiseGradArgs<T> part = grad.args;
        part.images = std::min(images, shape.images - n);
        before(first, last, n, n + part.images);
        part.in.data += n * part.in.n_stride;
        part.grad.data += n * part.grad.n_stride;
        part.sums = mutable_data<Acc<T>>(sums);
        kernel.planes_weight_grad(part, first, last, rows, conv_scratch<Acc<T>>(kernel.planes_scratch(window, rows)));
      }
    }
  });
  return sums;
}

template <typename T>
ConvDepthwiseGradArgs<T> some_channels(ConvDepthwiseGradArgs<T> args, int64_t begin, int64_t end) {
  args.in.data += begin, args.grad.data += begin, args.sums += begin;
  args.channels = end - begin;
  return args;
}

// Items of channels_last, enough for many threads: blocks of channels, and pieces of all images' rows, whole images if
// there are enough, that have sums of their own. Every piece reads the rows beside it again.
struct LastItems {
  Cut rows, channels;
  int64_t count() const { return rows.pieces * channels.pieces; }
};
inline LastItems last_items(const Conv2dShape& shape) {
  constexpr int64_t kItems = 16, kBlocks = 4, kMinElements = 16384;
  constexpr int64_t kUnit = 32;  // two lines of float32
  const int64_t rows = shape.images * shape.out[0], elements = rows * shape.out[1] * shape.filters;
  const int64_t blocks = std::min(kBlocks, divide_up(shape.filters, kUnit));
  const int64_t pieces = std::min({divide_up(kItems, blocks), rows, divide_up(elements, kMinElements)});
  return {{rows, pieces, shape.images >= pieces ? shape.out[0] : 1}, {shape.filters, blocks, kUnit}};
}

// Sums [filters, channels of a group, taps]. after(first channel, last, image, first row, last) is called as a thread
// is through with a band of rows of dy.
template <typename T, typename After>
Tensor last_weight_grad(const Conv2dShape& shape, const DepthwiseWeightGrad<T>& grad, const After& after) {
  const int64_t F = shape.filters, group = grad.args.group, sums_of_filter = group * grad.taps;
  const int64_t height = shape.out[0];
  const LastItems items = last_items(shape);
  const Cut& pieces = items.rows;
  Tensor sums = at::zeros({pieces.pieces, sums_of_filter, F}, grad.options);
  parallel_for_cost(items.count(), pieces.size * F / items.count() * grad.row_cost, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t piece = item / items.channels.pieces, block = item % items.channels.pieces;
      const int64_t c_begin = items.channels.at(block), c_end = items.channels.at(block + 1);
      ConvDepthwiseGradArgs<T> part = grad.args;
      part.sums = mutable_data<Acc<T>>(sums) + piece * sums_of_filter * F;
      part = some_channels(part, c_begin, c_end);
      const int64_t most = std::max<int64_t>(1, kRowElementsInL2 / (shape.out[1] * part.channels));
      const int64_t band = divide_up(height, divide_up(height, most));
      for (int64_t row = pieces.at(piece), rows; row < pieces.at(piece + 1); row += rows) {
        const int64_t y = row % height;
        rows = std::min({band, height - y, pieces.at(piece + 1) - row});
        kernels<T>().depthwise.last_weight_grad(part, row, row + rows);
        after(c_begin, c_end, row / height, y, y + rows);
      }
    }
  });
  return (pieces.pieces > 1 ? sums.sum(0) : sums[0]).view({grad.taps, group, F}).permute({2, 1, 0});
}

// [filters, channels of a group, taps] in the accumulation type.
template <typename T>
Tensor depthwise_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x) {
  const DepthwiseWeightGrad<T> grad(shape, dy, x);
  const auto nothing = [](auto...) {};
  if (shape.format == at::MemoryFormat::ChannelsLast) return last_weight_grad(shape, grad, nothing);
  return planes_weight_grad(shape, grad, nothing);
}

// --- both ---

// Whether one sweep has work for all threads: planes and pieces of rows are its items, of which each gradient alone has
// more. Several filters of a channel have data gradients of their own, which are summed.
inline bool sweeps_both(const Conv2dShape& shape) {
  const bool last = shape.format == at::MemoryFormat::ChannelsLast;
  return shape.filters == shape.channels &&
         (last ? last_items(shape).count() : shape.filters) >= 2 * at::get_num_threads();
}

// Writes dx, returns the weights' gradient; every sum is that of one gradient alone, bit for bit.
template <typename T>
Tensor depthwise_gradients(const Conv2dShape& shape, const Tensor& dy, const Tensor& x, const Tensor& weight,
                           const Tensor& dx) {
  const DepthwiseInputGrad<T> input_grad(shape, dy, weight, dx);
  DepthwiseWeightGrad<T> weight_grad(shape, dy, x);
  weight_grad.row_cost *= 2;  // the data gradient has as many sums
  if (shape.format == at::MemoryFormat::ChannelsLast) {
    // Rows of dx beside a band of dy, which all bands together cover once.
    const LastInputGrad<T> data(shape, input_grad);
    return last_weight_grad(shape, weight_grad,
                            [&](int64_t c_begin, int64_t c_end, int64_t n, int64_t row_begin, int64_t row_end) {
                              data.run(c_begin, c_end, n, row_begin, row_end, shape.out[0]);
                            });
  }
  const auto blocks_of_classes = plane_blocks(shape, input_grad);
  return planes_weight_grad(shape, weight_grad,
                            [&](int64_t first, int64_t last, int64_t image_begin, int64_t image_end) {
                              for (const auto& blocks : blocks_of_classes) {
                                Acc<T>* scratch = conv_scratch<Acc<T>>(blocks.scratch_elements);
                                for (int64_t n = image_begin; n < image_end; ++n) {
                                  for (int64_t block = 0; block < blocks.blocks(); ++block) {
                                    blocks.run(n * shape.filters + first, n * shape.filters + last, block, scratch);
                                  }
                                }
                              }
                            });
}

}  // namespace tilewright

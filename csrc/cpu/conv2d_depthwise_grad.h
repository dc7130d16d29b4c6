// Gradients of depthwise convolutions on the CPU, and of groups of a few channels: each alone, or both in one sweep
// over the images, which finds dy in the cache the second time.
#pragma once
#include "cpu/conv2d_depthwise.h"

namespace tilewright {

// --- the data gradient: sums over dy, class by class of pixels (conv2d_windows.h) ---

// dx of [N, filters, H, W]: one plane per filter; the caller sums those of one channel. The arguments point at
// the weights.
template <typename T>
struct DepthwiseInputGrad {
  ConvImages<T> dx;
  std::vector<Tensor> weights;
  std::vector<ConvDepthwiseArgs<T>> classes;  // those that have taps: elsewhere dx is zero

  DepthwiseInputGrad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight_in, const Tensor& dx_out)
      : dx(images_of(dx_out, mutable_data<T>(dx_out), shape.format)) {
    for (const GradientClass& part : gradient_classes(shape)) {
      if (part.taps() == 0) continue;
      std::vector<int64_t> taps;
      for (int64_t i = 0; i < part.y.count; ++i) {
        for (int64_t j = 0; j < part.x.count; ++j) {
          taps.push_back(part.y.kernel_index(i) * shape.kernel[1] + part.x.kernel_index(j));
        }
      }
      weights.push_back(depthwise_weights(shape, weight_in, taps));
      classes.push_back({images_of(dy, const_data<T>(dy), shape.format),
                         images_of_class(shape, part, dx_out, mutable_data<T>(dx_out), shape.format),
                         part.window(),
                         shape.images,
                         shape.filters,
                         weight_in.size(1),
                         1,
                         const_data<Acc<T>>(weights.back()),
                         {}});
    }
  }
};

// The four classes of stride 2, where each has pixels and taps.
template <typename T>
PlaneBlocks<Acc<T>> plane_blocks_of_classes(const DepthwiseInputGrad<T>& grad) {
  const auto& classes = grad.classes;
  TORCH_INTERNAL_ASSERT(classes.size() == 4, "conv2d_backward: ", classes.size(), " classes of pixels, expected 4");
  ConvDepthwiseClasses<T> args{classes[0].in, grad.dx, {}, classes[0].images, classes[0].channels, {}};
  int64_t taps = 0;
  for (int i = 0; i < 4; ++i) {
    args.windows[i] = classes[i].window;
    args.weights[i] = classes[i].weight;
    taps += classes[i].window.rows * classes[i].window.cols;
  }
  const auto& kernel = kernels<T>().depthwise;
  const int64_t height = args.windows[0].height;
  const int64_t rows =
      plane_rows(height, [&](int64_t rows) { return kernel.planes_classes_scratch(args.windows, rows); });
  const int64_t cost = rows * args.windows[0].width * (taps + 8) / 8;
  return {height, rows, cost, kernel.planes_classes_scratch(args.windows, rows),
          [args, &kernel](auto... block) { kernel.planes_classes(args, block...); }};
}

template <typename T>
std::vector<PlaneBlocks<Acc<T>>> plane_blocks(const Conv2dShape& shape, const DepthwiseInputGrad<T>& grad) {
  if (has_column_pairs(shape)) return {plane_blocks_of_classes(grad)};
  std::vector<PlaneBlocks<Acc<T>>> blocks;
  for (const auto& args : grad.classes) blocks.push_back(plane_blocks(args));
  return blocks;
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

template <typename T>
void depthwise_input_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight, const Tensor& dx) {
  const DepthwiseInputGrad<T> grad(shape, dy, weight, dx);
  if (shape.format == at::MemoryFormat::ChannelsLast) return run_last(grad.classes);
  for (const auto& blocks : plane_blocks(shape, grad)) run_planes(shape.images * shape.filters, blocks);
}

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

// Chunks of rows that have sums of their own: enough for many threads.
inline Cut row_chunks(const Conv2dShape& shape) {
  constexpr int64_t kChunks = 16, kMinElements = 16384;
  const int64_t rows = shape.images * shape.out[0], elements = rows * shape.out[1] * shape.filters;
  return {rows, std::min({kChunks, rows, divide_up(elements, kMinElements)}), 1};
}

// Sums [filters, channels of a group, taps]. after(image, first row, last) is called as a thread is through with a band
// of rows of dy.
template <typename T, typename After>
Tensor last_weight_grad(const Conv2dShape& shape, const DepthwiseWeightGrad<T>& grad, const After& after) {
  const int64_t F = shape.filters, group = grad.args.group, sums_of_filter = group * grad.taps;
  const int64_t height = shape.out[0], band = std::max<int64_t>(1, kRowElementsInL2 / (shape.out[1] * F));
  const Cut chunks = row_chunks(shape);
  Tensor sums = at::zeros({chunks.pieces, sums_of_filter, F}, grad.options);
  parallel_for_cost(chunks.pieces, chunks.size / chunks.pieces * F * grad.row_cost, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      ConvDepthwiseGradArgs<T> part = grad.args;
      part.sums = mutable_data<Acc<T>>(sums) + chunk * sums_of_filter * F;
      for (int64_t row = chunks.at(chunk), rows; row < chunks.at(chunk + 1); row += rows) {
        const int64_t y = row % height;
        rows = std::min({band, height - y, chunks.at(chunk + 1) - row});
        kernels<T>().depthwise.last_weight_grad(part, row, row + rows);
        after(row / height, y, y + rows);
      }
    }
  });
  return (chunks.pieces > 1 ? sums.sum(0) : sums[0]).view({grad.taps, group, F}).permute({2, 1, 0});
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

// Whether one sweep has work for all threads: planes and chunks of rows are its items, of which each gradient alone has
// more. Several filters of a channel have data gradients of their own, which are summed.
inline bool sweeps_both(const Conv2dShape& shape) {
  const bool last = shape.format == at::MemoryFormat::ChannelsLast;
  return shape.filters == shape.channels &&
         (last ? row_chunks(shape).pieces : shape.filters) >= 2 * at::get_num_threads();
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
    return last_weight_grad(shape, weight_grad, [&](int64_t n, int64_t row_begin, int64_t row_end) {
      for (const auto& args : input_grad.classes) {
        const int64_t height = args.window.height, first = n * height;
        kernels<T>().depthwise.last(args, first + row_begin * height / shape.out[0],
                                    first + row_end * height / shape.out[0]);
      }
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

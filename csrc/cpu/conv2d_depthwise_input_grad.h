// Data gradients of depthwise convolutions on the CPU, and of groups of a few channels: sums over dy, class by class of
// pixels (conv2d_windows.h).
#pragma once
#include <optional>

#include "cpu/conv2d_depthwise.h"

namespace tilewright {

// dx of [N, filters, H, W]: one plane per filter; the caller sums those of one channel. The arguments point at
// the weights.
template <typename T>
struct DepthwiseInputGrad {
  ConvImages<T> dx;
  std::vector<Tensor> weights;
  std::vector<ConvDepthwiseArgs<T>> classes;  // those that have taps: elsewhere dx is zero

  DepthwiseInputGrad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight_in, const Tensor& dx_out)
      : dx(images_of(dx_out, mutable_data<T>(dx_out), shape.format)) {
    const bool last = shape.format == at::MemoryFormat::ChannelsLast;
    const int64_t group = weight_in.size(1);
    std::vector<int64_t> taps, all_taps;
    std::vector<int64_t> begins;  // of the classes in all_taps
    for (const GradientClass& part : gradient_classes(shape)) {
      if (part.taps() == 0) continue;
      taps.clear();
      for (int64_t i = 0; i < part.y.count; ++i) {
        for (int64_t j = 0; j < part.x.count; ++j) {
          taps.push_back(part.y.kernel_index(i) * shape.kernel[1] + part.x.kernel_index(j));
        }
      }
      begins.push_back(all_taps.size());
      all_taps.insert(all_taps.end(), taps.begin(), taps.end());
      if (!last) weights.push_back(depthwise_weights(shape, weight_in, taps));
      classes.push_back({images_of(dy, const_data<T>(dy), shape.format),
                         images_of_class(shape, part, dx_out, mutable_data<T>(dx_out), shape.format),
                         part.window(),
                         shape.images,
                         shape.filters,
                         shape.filters,
                         group,
                         1,
                         last ? nullptr : const_data<Acc<T>>(weights.back()),
                         {}});
    }
    if (!last || classes.empty()) return;
    weights.push_back(depthwise_weights(shape, weight_in, all_taps));  // one call for all, rows [taps]
    for (size_t i = 0; i < classes.size(); ++i) {
      classes[i].weight = const_data<Acc<T>>(weights.back()) + begins[i] * group * shape.filters;
    }
  }
};

// The four classes of stride 2, where each has pixels and taps.
template <typename T>
ConvDepthwiseClasses<T> joined_classes(const DepthwiseInputGrad<T>& grad) {
  const auto& classes = grad.classes;
  TORCH_INTERNAL_ASSERT(classes.size() == 4, "conv2d_backward: ", classes.size(), " classes of pixels, expected 4");
  ConvDepthwiseClasses<T> joined{classes[0].in,       grad.dx,          {}, classes[0].images,
                                 classes[0].channels, classes[0].pitch, {}};
  for (int i = 0; i < 4; ++i) {
    joined.windows[i] = classes[i].window;
    joined.weights[i] = classes[i].weight;
  }
  return joined;
}

template <typename T>
PlaneBlocks<Acc<T>> plane_blocks_of_classes(const DepthwiseInputGrad<T>& grad) {
  const ConvDepthwiseClasses<T> args = joined_classes(grad);
  int64_t taps = 0;
  for (const ConvWindow& window : args.windows) taps += window.rows * window.cols;
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

// Channels [begin, end) of channels_last; of gradients, which have no epilogue.
template <typename T>
ConvDepthwiseArgs<T> some_channels(ConvDepthwiseArgs<T> args, int64_t begin, int64_t end) {
  args.in.data += begin, args.out.data += begin, args.weight += begin;
  args.channels = end - begin;
  return args;
}
template <typename T>
ConvDepthwiseClasses<T> some_channels(ConvDepthwiseClasses<T> args, int64_t begin, int64_t end) {
  args.grad.data += begin, args.out.data += begin;
  for (auto& weight : args.weights) weight += begin;
  args.channels = end - begin;
  return args;
}

// The data gradient in channels_last: strips of all four classes of stride 2 where they serve, else class by class.
template <typename T>
class LastInputGrad {
 public:
  LastInputGrad(const Conv2dShape& shape, const DepthwiseInputGrad<T>& grad) : classes_(grad.classes) {
    if (kernels<T>().depthwise.last_classes != nullptr && centres_gradient(shape)) joined_ = joined_classes(grad);
    for (const auto& args : classes_) {
      height_ = std::max(height_, args.window.height);
      row_cost_ += args.window.width * args.channels * (args.group * args.window.rows * args.window.cols + 4) / 8;
    }
  }

  // Of channels [c_begin, c_end), from row_begin / rows to row_end / rows of image n.
  void run(int64_t c_begin, int64_t c_end, int64_t n, int64_t row_begin, int64_t row_end, int64_t rows) const {
    const auto& kernel = kernels<T>().depthwise;
    const auto run_rows = [&](auto function, const auto& args, int64_t height) {
      function(some_channels(args, c_begin, c_end), n * height + row_begin * height / rows,
               n * height + row_end * height / rows);
    };
    if (joined_) return run_rows(kernel.last_classes, *joined_, joined_->grad.height);
    for (const auto& args : classes_) run_rows(kernel.last, args, args.window.height);
  }

  // All of it. Classes have bands of rows in turn, so that dy is read from memory once.
  void run() const {
    if (classes_.empty()) return;
    if (classes_.size() == 1) return run_last(classes_.front());
    // Enough items for many threads, though every band reads the rows around it as well; short ones keep dy in the
    // cache from class to class, which strips of all classes read once anyhow.
    constexpr int64_t kItems = 16, kMostRows = 8;
    const int64_t images = classes_.front().images, channels = classes_.front().channels;
    const int64_t rows =
        joined_ ? divide_up(height_ * images, kItems) : std::min(kMostRows, divide_up(height_ * images, kItems));
    const int64_t bands = divide_up(height_, rows);
    parallel_for_cost(images * bands, rows * row_cost_, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i % bands * rows;
        run(0, channels, i / bands, row, std::min(height_, row + rows), height_);
      }
    });
  }

 private:
  std::vector<ConvDepthwiseArgs<T>> classes_;
  std::optional<ConvDepthwiseClasses<T>> joined_;
  int64_t height_ = 0, row_cost_ = 0;
};

template <typename T>
void depthwise_input_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight, const Tensor& dx) {
  const DepthwiseInputGrad<T> grad(shape, dy, weight, dx);
  if (shape.format == at::MemoryFormat::ChannelsLast) return LastInputGrad<T>(shape, grad).run();
  for (const auto& blocks : plane_blocks(shape, grad)) run_planes(shape.images * shape.filters, blocks);
}

}  // namespace tilewright

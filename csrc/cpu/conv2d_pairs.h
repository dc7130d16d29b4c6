// bfloat16 on processors that multiply pairs of it, and float32 and float16 in parts of it on tile units
// (kernels/conv2d_pairs.h): forward and data gradient of channels_last images, dense or in groups. All cuts depend on
// the shape alone.
#pragma once
#include "cpu/conv2d_sum_report.h"
#include "cpu/conv2d_work.h"

namespace tilewright {

inline bool multiplies_pairs(at::ScalarType dtype) {
  return dtype == at::kBFloat16 && kernels<BF16>().conv2d.pairs.panel > 0;
}

// Not by a dot product of two, whose step is one pair.
template <typename T>
bool has_tile_unit() {
  return kernels<T>().conv2d.pairs.step > 2;
}

// What multiplications cost (parallel_for_cost). A product of pairs takes a tenth of the time of one of float32; two
// parts take four of them, three parts six.
template <typename T>
int64_t pairs_cost(int64_t multiplications) {
  const int64_t parts = kernels<T>().conv2d.pairs.parts;
  return multiplications * (parts == 1 ? 1 : 2 * parts) / 256;
}

inline void* conv_pairs_scratch() { return thread_scratch(kConvScratchSlot, kPairScratchBytes); }

// [group][panel][part][k, filled up][panel]
template <typename T>
Tensor pack_conv_pairs(const WeightLayout& layout, const T* data, int64_t group_stride, int64_t groups, int64_t K,
                       const at::TensorOptions& options) {
  const auto& kernel = kernels<T>().conv2d.pairs;
  const int64_t panels = divide_up(layout.filters, kernel.panel), depth = divide_up(K, kernel.step) * kernel.step;
  return pack_panels<BF16>(layout, data, group_stride, groups, panels, panels * kernel.parts * depth * kernel.panel,
                           options.dtype(at::kBFloat16),
                           [&](const ConvWeights<const T>& weights, int64_t panel, BF16* packed) {
                             kernel.pack_weights(weights, K, panel, panel + 1, packed);
                           });
}

// How one product is computed: output rows per block of the kernel without patches, or 0: with patches. tap_step: k's
// from one tap to the next.
struct PairsPlan {
  int64_t rows, tap_step;
};

// Output rows of a block of the kernel without patches: the least of tiles, which tile units compute whole, and of
// copies, which blocks that touch share. Copying a value takes as long as kCopy products of one; strips of 400 pixels
// and a megabyte leave room for weights in L2.
template <typename T>
int64_t strip_rows(const ConvWindow& window, int64_t channels, int64_t filters, int64_t images) {
  constexpr int64_t kMostPixels = 400, kLargestScratch = 1 << 20, kItems = 16, kTile = 32, kCopy = 40;
  const int64_t pitch = phase_pitch(window), taps = window.rows * window.cols;
  const int64_t most = std::min(
      {window.height, divide_up(window.height, divide_up(kItems, images)), std::max<int64_t>(1, kMostPixels / pitch)});
  // Of short rows several at once: they fill a tile unit's tile, and weights are not read again for each.
  const int64_t step = std::min(most, std::max<int64_t>(1, kTile / pitch));
  int64_t best = step;
  double least = 0;
  for (int64_t rows = step; rows <= most; rows += step) {
    if (rows > step && kernels<T>().conv2d.pairs.strip_bytes(window, channels, filters, rows) > kLargestScratch) break;
    const int64_t computed =
        has_tile_unit<T>() ? divide_up((rows - 1) * pitch + window.width, kTile) * kTile : rows * window.width;
    const int64_t copied = (rows * window.stride_y + window.rows - 1) * window.stride_x * pitch;
    const double cost = static_cast<double>(divide_up(window.height, rows)) *
                        static_cast<double>(computed * taps * filters + kCopy * copied);
    if (rows == step || cost <= least) {
      least = cost;
      best = rows;
    }
  }
  return best;
}

// Patches serve better where phases do not, and with channels that fill less than half of their steps.
template <typename T>
PairsPlan plan_pairs(const ConvWindow& window, int64_t groups, int64_t channels, int64_t filters, int64_t images) {
  constexpr int64_t kLargestScratch = 1 << 20;
  const auto& kernel = kernels<T>().conv2d.pairs;
  const PairsPlan patches{0, channels};
  const int64_t tap_step = divide_up(channels, kernel.step) * kernel.step;
  if (tap_step > 2 * channels || !phases_serve(window)) return patches;
  const int64_t rows = strip_rows<T>(window, channels, filters, images);
  // Every block reads all weights, and a tile unit waits for them: small ones of weights beyond L2 are better joined
  // over images there.
  constexpr int64_t kCachedWeights = 768 * 1024, kFewPixels = 128;
  const int64_t weights = groups * filters * window.rows * window.cols * channels;
  const bool waits = has_tile_unit<T>() && weights > kCachedWeights && rows * window.width < kFewPixels;
  if (waits || kernel.strip_bytes(window, channels, filters, rows) > kLargestScratch) return patches;
  return {rows, tap_step};
}

// Reports the sums, if asked to.
template <typename T>
void run_conv_strips(const ConvPairsArgs<T>& args, int64_t images, int64_t rows, SumReport* report) {
  const auto& kernel = kernels<T>().conv2d.pairs;
  const ConvWindow& window = args.window;
  const int64_t K = window.rows * window.cols * args.channels, blocks = divide_up(window.height, rows);
  // Every part copies the strip again: not for less than 64 filters.
  constexpr int64_t kItems = 16, kFewestFilters = 64;
  const Cut parts{args.filters, std::min(divide_up(kItems, blocks * images), divide_up(args.filters, kFewestFilters)),
                  kernel.panel};
  const int64_t cost = pairs_cost<T>(args.groups * rows * window.width * divide_up(args.filters, parts.pieces) * K);
  const int64_t bytes = kernel.strip_bytes(window, args.channels, args.filters, rows);
  parallel_for_cost(images * blocks * parts.pieces, cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts.pieces, row = i / parts.pieces % blocks * rows, n = i / parts.pieces / blocks;
      const float magnitude = kernel.strip(args, n, row, std::min(window.height, row + rows), parts.at(part),
                                           parts.at(part + 1), thread_scratch(kConvScratchSlot, bytes));
      if (report != nullptr) report->add(magnitude);
    }
  });
}

inline void run_conv_patches(const ConvPairsArgs<BF16>& args, int64_t images) {
  const ConvWindow& window = args.window;
  const int64_t K = window.rows * window.cols * args.channels, pixels = images * window.height * window.width;
  constexpr int64_t kTile = 32;  // rows of AMX's tile
  const int64_t panel = kernels<BF16>().conv2d.pairs.panel;
  const int64_t weights = args.groups * args.filters * K;
  // A part copies its own patches: twice what it reads.
  const WorkCut cut(pixels, kPairPixels, divide_up(args.filters, panel), static_cast<double>(weights * sizeof(BF16)),
                    static_cast<double>(2 * pixels * args.groups * K * sizeof(BF16)));
  const int64_t most = std::min(kPairPixels, divide_up(divide_up(pixels, cut.blocks), kTile) * kTile);
  const int64_t blocks = divide_up(pixels, most);
  const Cut parts{args.filters, cut.parts, panel};
  const int64_t cost = pairs_cost<BF16>(args.groups * most * divide_up(args.filters, parts.pieces) * K);
  parallel_for_cost(blocks * parts.pieces, cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % blocks, part = i / blocks;
      kernels<BF16>().conv2d.pairs.forward(args, block * most, std::min(pixels, (block + 1) * most), parts.at(part),
                                           parts.at(part + 1), conv_pairs_scratch());
    }
  });
}

// A report is asked for, and more than one part multiplied, only where there are strips (has_strips).
template <typename T>
void run_conv_pairs(const ConvPairsArgs<T>& args, int64_t images, const PairsPlan& plan, SumReport* report) {
  if (plan.rows > 0) return run_conv_strips(args, images, plan.rows, report);
  TORCH_INTERNAL_ASSERT(report == nullptr, "patches do not look at their sums");
  if constexpr (std::is_same_v<T, BF16>) run_conv_patches(args, images);
}

// x channels_last; output in output_format.
template <typename T>
void pairs_forward(const Conv2dShape& shape, const Tensor& x, const Tensor& weight, bool weight_last,
                   const ConvEpilogue<T>& epilogue, const Tensor& output, at::MemoryFormat output_format,
                   SumReport* report = nullptr) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const ConvWindow window = forward_window(shape);
  const PairsPlan plan = plan_pairs<T>(window, shape.groups, C, F, shape.images);
  const WeightLayout layout = forward_weights(shape, weight_last, ConvOrder::kTapsOuter, plan.tap_step);
  const Tensor packed = pack_conv_pairs(layout, const_data<T>(weight), weight.numel() / shape.groups, shape.groups,
                                        window.rows * window.cols * plan.tap_step, x.options());
  const ConvPairsArgs<T> args{images_of(x, const_data<T>(x), at::MemoryFormat::ChannelsLast),
                              images_of(output, mutable_data<T>(output), output_format),
                              window,
                              shape.groups,
                              C,
                              F,
                              packed.const_data_ptr(),
                              epilogue,
                              /*checks=*/report != nullptr};
  run_conv_pairs(args, shape.images, plan, report);
}

// The pixels of dx of one class, which has taps. dy channels_last; dx in dx_format.
template <typename T>
void pairs_input_grad(const Conv2dShape& shape, const GradientClass& part, const Tensor& dy, const Tensor& weight,
                      bool weight_last, const Tensor& dx, at::MemoryFormat dx_format, SumReport* report = nullptr) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const ConvWindow window = part.window();
  const PairsPlan plan = plan_pairs<T>(window, shape.groups, F, C, shape.images);
  const WeightLayout layout = gradient_weights(shape, part, weight_last, ConvOrder::kTapsOuter, plan.tap_step);
  const Tensor packed = pack_conv_pairs(layout, const_data<T>(weight), weight.numel() / shape.groups, shape.groups,
                                        part.taps() * plan.tap_step, dy.options());
  const ConvPairsArgs<T> args{images_of(dy, const_data<T>(dy), at::MemoryFormat::ChannelsLast),
                              images_of_class(shape, part, dx, mutable_data<T>(dx), dx_format),
                              window,
                              shape.groups,
                              F,
                              C,
                              packed.const_data_ptr(),
                              {},
                              /*checks=*/report != nullptr};
  run_conv_pairs(args, shape.images, plan, report);
}

}  // namespace tilewright

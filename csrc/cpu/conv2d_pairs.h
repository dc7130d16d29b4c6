// bfloat16 on processors that multiply pairs of it, and float32 and float16 in parts of it on tile units
// (kernels/conv2d_pairs.h): dense and grouped convolution of channels_last images. All cuts depend on the shape alone.
#pragma once
#include "cpu/conv2d_sum_report.h"
#include "cpu/conv2d_work.h"

namespace tilewright {

inline bool multiplies_pairs(at::ScalarType dtype) {
  return dtype == at::kBFloat16 && kernels<BF16>().conv2d.pairs.panel > 0;
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

// Output rows of a block of the kernel without patches: the least of tiles, whose rows behind the last pixel are
// dropped, and of copies, which blocks that touch share. Copying a value takes as long as kCopy products of one; strips
// of 400 pixels and a megabyte leave room for weights in L2.
template <typename T>
int64_t strip_rows(const ConvWindow& window, int64_t channels, int64_t filters, int64_t images) {
  constexpr int64_t kMostPixels = 400, kLargestScratch = 1 << 20, kItems = 16, kTile = 32, kCopy = 40;
  const int64_t pitch = phase_pitch(window), taps = window.rows * window.cols;
  const int64_t most = std::min(
      {window.height, divide_up(window.height, divide_up(kItems, images)), std::max<int64_t>(1, kMostPixels / pitch)});
  // Whole tiles of short rows.
  const int64_t step = std::min(most, std::max<int64_t>(1, kTile / pitch));
  int64_t best = step;
  double least = 0;
  for (int64_t rows = step; rows <= most; rows += step) {
    if (rows > step && kernels<T>().conv2d.pairs.strip_bytes(window, channels, filters, rows) > kLargestScratch) break;
    const int64_t computed = divide_up((rows - 1) * pitch + window.width, kTile) * kTile;
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
  // Every block reads all weights: small ones of weights beyond L2 are better joined over images.
  constexpr int64_t kCachedWeights = 768 * 1024, kFewPixels = 128;
  const int64_t weights = groups * filters * window.rows * window.cols * channels;
  if (kernel.strip_bytes(window, channels, filters, rows) > kLargestScratch ||
      (weights > kCachedWeights && rows * window.width < kFewPixels)) {
    return patches;
  }
  return {rows, tap_step};
}

template <typename T>
SumReport run_conv_strips(const ConvPairsArgs<T>& args, int64_t images, int64_t rows) {
  const auto& kernel = kernels<T>().conv2d.pairs;
  const ConvWindow& window = args.window;
  const int64_t K = window.rows * window.cols * args.channels, blocks = divide_up(window.height, rows);
  // Every part copies the strip again: not for less than 64 filters.
  constexpr int64_t kItems = 16, kFewestFilters = 64;
  const Cut parts{args.filters, std::min(divide_up(kItems, blocks * images), divide_up(args.filters, kFewestFilters)),
                  kernel.panel};
  // A product of pairs takes a tenth of the time of one of float32; two parts take four of them, three parts six.
  const int64_t products = kernel.parts == 1 ? 1 : 2 * kernel.parts;
  const int64_t cost = args.groups * rows * window.width * divide_up(args.filters, parts.pieces) * K * products / 256;
  const int64_t bytes = kernel.strip_bytes(window, args.channels, args.filters, rows);
  SharedSumReport report;
  parallel_for_cost(images * blocks * parts.pieces, cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts.pieces, row = i / parts.pieces % blocks * rows, n = i / parts.pieces / blocks;
      report.add(kernel.strip(args, n, row, std::min(window.height, row + rows), parts.at(part), parts.at(part + 1),
                              thread_scratch(kConvScratchSlot, bytes)));
    }
  });
  return report.get();
}

// False where args asks to check and a sum is not finite, or nothing would check it.
inline bool run_conv_pairs(const ConvPairsArgs<BF16>& args, int64_t images, const PairsPlan& plan) {
  if (plan.rows > 0) return run_conv_strips(args, images, plan.rows).is_finite();
  if (args.checks) return false;
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
  // A product of pairs takes a tenth of the time of one of float32.
  const int64_t cost = args.groups * most * divide_up(args.filters, parts.pieces) * K / 256;
  parallel_for_cost(blocks * parts.pieces, cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % blocks, part = i / blocks;
      kernels<BF16>().conv2d.pairs.forward(args, block * most, std::min(pixels, (block + 1) * most), parts.at(part),
                                           parts.at(part + 1), conv_pairs_scratch());
    }
  });
  return true;
}

inline bool pairs_forward(const Conv2dShape& shape, const Tensor& x, const Tensor& weight, bool weight_last,
                          const ConvEpilogue<BF16>& epilogue, const Tensor& output, bool checks = false) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t taps = shape.kernel[0] * shape.kernel[1];
  const ConvWindow window = forward_window(shape);
  const PairsPlan plan = plan_pairs<BF16>(window, shape.groups, C, F, shape.images);
  const WeightLayout layout = forward_weights(shape, weight_last, ConvOrder::kTapsOuter, plan.tap_step);
  const Tensor packed =
      pack_conv_pairs(layout, const_data<BF16>(weight), F * C * taps, shape.groups, taps * plan.tap_step, x.options());
  return run_conv_pairs(
      {images_of(x, const_data<BF16>(x), shape.format), images_of(output, mutable_data<BF16>(output), shape.format),
       window, shape.groups, C, F, packed.const_data_ptr(), epilogue, checks},
      shape.images, plan);
}

inline bool pairs_input_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight, bool weight_last,
                             const Tensor& dx, bool checks = false) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t group_weights = F * C * shape.kernel[0] * shape.kernel[1];
  for (const GradientClass& part : gradient_classes(shape)) {
    if (part.taps() == 0) continue;  // dx is zero there
    const PairsPlan plan = plan_pairs<BF16>(part.window(), shape.groups, F, C, shape.images);
    const WeightLayout layout = gradient_weights(shape, part, weight_last, ConvOrder::kTapsOuter, plan.tap_step);
    const Tensor packed = pack_conv_pairs(layout, const_data<BF16>(weight), group_weights, shape.groups,
                                          part.taps() * plan.tap_step, dy.options());
    ConvPairsArgs<BF16> args{images_of(dy, const_data<BF16>(dy), shape.format),
                             images_of_class(shape, part, dx, mutable_data<BF16>(dx), shape.format),
                             part.window(),
                             shape.groups,
                             F,
                             C,
                             packed.const_data_ptr(),
                             {},
                             checks};
    if (!run_conv_pairs(args, shape.images, plan)) return false;
  }
  return true;
}

// Filters that one part of a weights' gradient sums.
template <typename T>
constexpr int64_t kGradFilters = std::is_same_v<T, BF16> ? kPairFilters : kPairFilters / 2;

// Output rows of a block of the weights' gradient without patches, or 0: with patches, where channels would not fill
// half of a panel or where images are so small that sums would be read and written too often.
template <typename T>
int64_t strip_grad_rows(const ConvWindow& window, int64_t channels, int64_t filters) {
  // A block is of one image, and reads and writes all sums: 1024 positions, if there are (512: 0.8 to 0.95x of native
  // for weights of 256 x 256 and more, 1024: 0.93 to 1.02x), and what 256 filters and 128 channels of them take. Three
  // parts of half of all of it.
  constexpr bool kWhole = std::is_same_v<T, BF16>;
  constexpr int64_t kPixels = kWhole ? 1024 : 512, kLargestScratch = kWhole ? 4 << 20 : 5 << 19;
  constexpr int64_t kFewestPixels = 384, kHalfPanel = 16;
  const int64_t pitch = phase_pitch(window), taps = window.rows * window.cols;
  if ((kWhole && taps == 1) || taps > kMostStripTaps || std::min(channels, filters) < kHalfPanel ||
      !phases_serve(window) || window.height * pitch < kFewestPixels) {
    return 0;
  }
  const auto bytes = [&](int64_t rows) {
    return kernels<T>().conv2d.pairs.strip_grad_bytes(window, channels, std::min(filters, kGradFilters<T>), rows);
  };
  int64_t rows = divide_up(window.height, divide_up(window.height, std::max<int64_t>(1, kPixels / pitch)));
  while (!kWhole && rows > 1 && bytes(rows) > kLargestScratch) rows = divide_up(rows, 2);
  return bytes(rows) <= kLargestScratch ? rows : 0;
}

// What a weights' gradient reads, as its kernel sees it.
template <typename T>
struct GradImages {
  ConvImages<const T> in;
  ConvWindow window;
  int64_t images;
};
template <typename T>
GradImages<T> grad_images(const Conv2dShape& shape, const Tensor& x) {
  return {images_of(x, const_data<T>(x), shape.format), forward_window(shape), shape.images};
}

// Cuts the items of a weights' gradient, which add to sums of their chunk, and writes the weights. run(args of the
// chunk, chunk, part); dweight in either format.
template <typename T, typename Run>
SumReport sum_pair_weights(const Conv2dShape& shape, const Tensor& dy, const GradImages<T>& read, const Tensor& dweight,
                           int64_t chunks, int64_t parts, const Run& run) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t K = C * shape.kernel[0] * shape.kernel[1], pixels = shape.images * shape.out[0] * shape.out[1];
  Tensor sums = at::empty({chunks, shape.filters, K}, dy.options().dtype(at::kFloat));
  const ConvPairsGradArgs<T> first{read.in, const_data<T>(dy),        shape.filters, read.window, shape.groups, C,
                                   F,       mutable_data<float>(sums)};
  const int64_t cost = pixels / chunks * (K + 1) * (shape.filters / parts + 1) / 256;
  parallel_for_cost(chunks * parts, cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ConvPairsGradArgs<T> args = first;
      args.sums += i / parts * shape.filters * K;
      run(args, i / parts, i % parts);
    }
  });
  const bool last = !dweight.is_contiguous();
  SharedSumReport report;
  parallel_for_cost(shape.filters, K * (chunks + 1), [&](int64_t begin, int64_t end) {
    report.add(kernels<T>().conv2d.pairs.finish_weights(first, chunks, begin, end, last, mutable_data<T>(dweight)));
  });
  return report.get();
}

// dy contiguous.
template <typename T>
SumReport strip_weight_grad(const Conv2dShape& shape, const Tensor& dy, const GradImages<T>& read,
                            const Tensor& dweight, int64_t rows) {
  const auto& kernel = kernels<T>().conv2d.pairs;
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  constexpr int64_t kItems = 8;  // half of what others share out: the sums of all are added up
  const Cut filters{F, divide_up(F, kGradFilters<T>), kernel.panel};
  const int64_t in_all = read.images * divide_up(read.window.height, rows);
  // Each chunk has sums of its own: no more than 64 MB in all, where one of them is not more.
  constexpr int64_t kMostSums = 16 << 20;
  const int64_t affordable = std::max<int64_t>(1, kMostSums / dweight.numel());
  const Cut chunks{in_all, std::min({divide_up(kItems, filters.pieces), in_all, affordable}), 1};
  const int64_t bytes = kernel.strip_grad_bytes(read.window, C, std::min(F, kGradFilters<T>), rows);
  return sum_pair_weights<T>(shape, dy, read, dweight, chunks.pieces, filters.pieces,
                             [&](const ConvPairsGradArgs<T>& args, int64_t chunk, int64_t part) {
                               kernel.strip_weight_grad(args, rows, chunks.at(chunk), chunks.at(chunk + 1),
                                                        filters.at(part), filters.at(part + 1),
                                                        thread_scratch(kConvScratchSlot, bytes));
                             });
}

// dy contiguous; dweight in either format.
inline void pairs_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x, const Tensor& dweight) {
  const auto& kernel = kernels<BF16>().conv2d.pairs;
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t K = C * shape.kernel[0] * shape.kernel[1], pixels = shape.images * shape.out[0] * shape.out[1];
  const int64_t rows = strip_grad_rows<BF16>(forward_window(shape), C, F);
  const GradImages<BF16> read = grad_images<BF16>(shape, x);
  if (rows > 0 && strip_weight_grad(shape, dy, read, dweight, rows).is_finite()) return;
  constexpr int64_t kItems = 16, kPartK = 1024;
  const Cut filters{F, divide_up(F, kPairFilters), kernel.panel};
  const Cut ks{K, divide_up(K, kPartK), kPairGradK};
  const int64_t parts = filters.pieces * ks.pieces;
  // Chunks of two blocks or more: each has sums of its own.
  const Cut chunks{pixels, std::min(divide_up(kItems, parts), divide_up(pixels, 2 * kPairGradPixels)), 2};
  sum_pair_weights(shape, dy, read, dweight, chunks.pieces, parts,
                   [&](const ConvPairsGradArgs<BF16>& args, int64_t chunk, int64_t part) {
                     const int64_t filter = part % filters.pieces, k = part / filters.pieces;
                     kernel.weight_grad(args, chunks.at(chunk), chunks.at(chunk + 1), ks.at(k), ks.at(k + 1),
                                        filters.at(filter), filters.at(filter + 1), conv_pairs_scratch());
                   });
}

}  // namespace tilewright

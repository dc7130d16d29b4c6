// The weights' gradient of bfloat16 in pairs and of float32 and float16 in parts of it: products of dy, turned, and
// patches or strips of the images (kernels/conv2d_pairs.h, kernels/conv2d_pairs_strip_grad.h).
#pragma once
#include "cpu/conv2d_pairs.h"

namespace tilewright {

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

// Whether every product of a pass is one of strips, without patches.
template <typename T>
bool has_strips(const Conv2dShape& shape, ConvPass pass) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  if (pass == ConvPass::kWeightGrad) return strip_grad_rows<T>(forward_window(shape), C, F) > 0;
  if (pass == ConvPass::kForward) {
    return plan_pairs<T>(forward_window(shape), shape.groups, C, F, shape.images).rows > 0;
  }
  for (const GradientClass& part : gradient_classes(shape)) {
    if (part.taps() > 0 && plan_pairs<T>(part.window(), shape.groups, F, C, shape.images).rows == 0) return false;
  }
  return true;
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

// Adds sums [chunk][filter][tap][channel] up, which are lost, and writes the weights, in either format. Reports the
// sums, if asked to.
template <typename T>
void finish_pair_weights(const Conv2dShape& shape, const Tensor& sums, const Tensor& dweight, SumReport* report) {
  const int64_t chunks = sums.size(0), K = dweight.numel() / shape.filters;
  const ConvPairsSums args{shape.filters, shape.kernel[0] * shape.kernel[1], shape.channels / shape.groups,
                           mutable_data<float>(sums)};
  const bool last = !dweight.is_contiguous();
  parallel_for_cost(shape.filters, K * (chunks + 1), [&](int64_t begin, int64_t end) {
    const float magnitude =
        kernels<T>().conv2d.pairs.finish_weights(args, chunks, begin, end, last, mutable_data<T>(dweight));
    if (report != nullptr) report->add(magnitude);
  });
}

// Cuts the items of a weights' gradient, which add to sums of their chunk, and writes the weights. run(args of the
// chunk, chunk, part); dweight in either format.
template <typename T, typename Run>
void sum_pair_weights(const Conv2dShape& shape, const Tensor& dy, const GradImages<T>& read, const Tensor& dweight,
                      int64_t chunks, int64_t parts, SumReport* report, const Run& run) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t K = C * shape.kernel[0] * shape.kernel[1], pixels = shape.images * shape.out[0] * shape.out[1];
  Tensor sums = scratch_tensor({chunks, shape.filters, K}, dy.options().dtype(at::kFloat));
  const ConvPairsGradArgs<T> first{read.in, const_data<T>(dy),        shape.filters, read.window, shape.groups, C,
                                   F,       mutable_data<float>(sums)};
  const int64_t cost = pairs_cost<T>(pixels / chunks * (K + 1) * (shape.filters / parts + 1));
  parallel_for_cost(chunks * parts, cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ConvPairsGradArgs<T> args = first;
      args.sums += i / parts * shape.filters * K;
      run(args, i / parts, i % parts);
    }
  });
  finish_pair_weights<T>(shape, sums, dweight, report);
}

// dy contiguous.
template <typename T>
void strip_weight_grad(const Conv2dShape& shape, const Tensor& dy, const GradImages<T>& read, const Tensor& dweight,
                       int64_t rows, SumReport& report) {
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
  sum_pair_weights<T>(shape, dy, read, dweight, chunks.pieces, filters.pieces, &report,
                      [&](const ConvPairsGradArgs<T>& args, int64_t chunk, int64_t part) {
                        kernel.strip_weight_grad(args, rows, chunks.at(chunk), chunks.at(chunk + 1), filters.at(part),
                                                 filters.at(part + 1), thread_scratch(kConvScratchSlot, bytes));
                      });
}

// dy contiguous; dweight in either format.
inline void pairs_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x, const Tensor& dweight) {
  const auto& kernel = kernels<BF16>().conv2d.pairs;
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t K = C * shape.kernel[0] * shape.kernel[1], pixels = shape.images * shape.out[0] * shape.out[1];
  const int64_t rows = strip_grad_rows<BF16>(forward_window(shape), C, F);
  const GradImages<BF16> read = grad_images<BF16>(shape, x);
  if (rows > 0) {
    SumReport report;
    strip_weight_grad(shape, dy, read, dweight, rows, report);
    if (report.is_finite()) return;
  }
  constexpr int64_t kItems = 16, kPartK = 1024;
  const Cut filters{F, divide_up(F, kPairFilters), kernel.panel};
  const Cut ks{K, divide_up(K, kPartK), kPairGradK};
  const int64_t parts = filters.pieces * ks.pieces;
  // Chunks of two blocks or more: each has sums of its own.
  const Cut chunks{pixels, std::min(divide_up(kItems, parts), divide_up(pixels, 2 * kPairGradPixels)), 2};
  sum_pair_weights(shape, dy, read, dweight, chunks.pieces, parts, /*report=*/nullptr,
                   [&](const ConvPairsGradArgs<BF16>& args, int64_t chunk, int64_t part) {
                     const int64_t filter = part % filters.pieces, k = part / filters.pieces;
                     kernel.weight_grad(args, chunks.at(chunk), chunks.at(chunk + 1), ks.at(k), ks.at(k + 1),
                                        filters.at(filter), filters.at(filter + 1), conv_pairs_scratch());
                   });
}

}  // namespace tilewright

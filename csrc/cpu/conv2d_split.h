// float32 as three parts of bfloat16, float16 as two, on tile units (kernels/gemm_split.h): strips of channels_last
// images, 1x1 kernels among them. Sums that are not sound (SumReport) are the caller's to compute another way.
#pragma once
#include <c10/util/env.h>

#include "cpu/conv2d_format.h"
#include "cpu/conv2d_pairs_weight_grad.h"
#include "cpu/conv2d_pointwise.h"

namespace tilewright {

// The switch: TILEWRIGHT_SPLIT=0 in the environment, read once.
inline bool split_is_allowed() {
  static const bool is_wanted = c10::utils::get_env("TILEWRIGHT_SPLIT") != "0";
  return is_wanted && kernels<float>().conv2d.pairs.panel > 0;
}

template <typename T>
constexpr bool kCanSplit = std::is_same_v<T, float> || std::is_same_v<T, F16>;

// The convolution as strips see it. A single tap reads no neighbours: the pixels that it reads are images of their own,
// and where its result is channels_last, too, one column of all images' pixels.
inline Conv2dShape split_view(const Conv2dShape& shape, ConvPass pass, at::MemoryFormat result) {
  Conv2dShape view = shape;
  const bool strided = shape.stride[0] > 1 || shape.stride[1] > 1;
  if (shape.kernel[0] * shape.kernel[1] > 1 || shape.padding[0] > 0 || shape.padding[1] > 0 ||
      (pass == ConvPass::kInputGrad && strided)) {
    return view;
  }
  view.stride[0] = view.stride[1] = 1;
  if (pass == ConvPass::kWeightGrad || result != kPlanes) {
    view.out[0] = shape.images * shape.out[0] * shape.out[1];
    view.out[1] = view.images = 1;
  }
  view.height = view.out[0];
  view.width = view.out[1];
  return view;
}

// Channels_last images as a view's.
inline Tensor in_view(const Tensor& images, const Conv2dShape& shape, const Conv2dShape& view) {
  if (view.images == shape.images && view.out[1] == shape.out[1]) return images;
  return images.permute({0, 2, 3, 1}).view({1, view.out[0], 1, images.size(1)}).permute({0, 3, 1, 2});
}

// 1x1 kernels split both operands of their weights' gradient as they pack them.
inline bool point_grad_suits(const Conv2dShape& shape, at::ScalarType dtype) {
  constexpr int64_t kFewestPixels = 256;
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  return std::min(C, F) >= (dtype == at::kHalf ? 16 : 32) &&
         shape.images * shape.out[0] * shape.out[1] >= kFewestPixels;
}

// Whether there are strips, and the products pay for splitting and packing what is multiplied: enough of them for each
// value that is read, more for planes, which are transposed too, and for a weights' gradient, which packs both
// operands; and for each weight. Steps of 32 channels and panels of 32 filters are mostly full, and so are tiles of an
// image. float16 has fewer products and parts, and would be widened otherwise. result: the format that is written.
inline bool split_suits(const Conv2dShape& shape, at::ScalarType dtype, ConvPass pass, at::MemoryFormat result) {
  constexpr int64_t kFewestPixels = 512, kFewestOfImage = 128;
  if ((dtype != at::kFloat && dtype != at::kHalf) || !split_is_allowed()) return false;
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t taps = shape.kernel[0] * shape.kernel[1], pixels = shape.images * shape.out[0] * shape.out[1];
  const bool half = dtype == at::kHalf, planes = shape.format != at::MemoryFormat::ChannelsLast;
  if (pass == ConvPass::kWeightGrad && is_pointwise(shape)) return point_grad_suits(shape, dtype);
  const Conv2dShape view = split_view(shape, pass, result);
  if (std::min(C, F) < (half ? 16 : 32) || pixels < kFewestPixels || view.out[0] * view.out[1] < kFewestOfImage) {
    return false;
  }
  const int64_t read = taps == 1 ? C : C * shape.stride[0] * shape.stride[1];
  const int64_t plain = planes ? 100 : 48, gradient = planes ? 220 : 190;
  const int64_t worth_a_value = (pass == ConvPass::kWeightGrad ? gradient : plain) / (half ? 4 : 1);
  if (taps * C * F < worth_a_value * (read + F)) return false;
  return half ? has_strips<F16>(view, pass) : has_strips<float>(view, pass);
}

// Beside Winograd's minimal filtering, whose products are float32's: float16 does, while its weights are in cache.
inline bool split_outruns_winograd(const Conv2dShape& shape, at::ScalarType dtype) {
  constexpr int64_t kCachedWeights = 768 * 1024;
  const int64_t weights = shape.filters * shape.channels / shape.groups * shape.kernel[0] * shape.kernel[1];
  return dtype == at::kHalf && weights <= kCachedWeights;
}

// What is known of an operand before it is split. Its parts are exact but for those below 2^-126: nothing beside values
// from 2^-64 on.
enum class SplitScale { kZero, kTiny, kNormal };
template <typename T>
SplitScale split_scale(const Tensor& operand) {
  constexpr float kNormal = 0x1p-64f;
  constexpr int64_t kBlock = 4096;
  if constexpr (std::is_same_v<T, F16>) return SplitScale::kNormal;  // its least part is 2^-24
  const float* values = operand.const_data_ptr<float>();
  std::atomic<bool> normal{false}, zero{true};
  const auto look = [&](int64_t block) {
    bool is_normal = false, is_zero = true;
    for (int64_t i = block * kBlock; i < std::min(operand.numel(), (block + 1) * kBlock); ++i) {
      is_normal |= !(std::abs(values[i]) < kNormal);
      is_zero &= values[i] == 0.0f;
    }
    if (is_normal) normal = true;
    if (!is_zero) zero = false;
  };
  look(0);  // as a rule enough
  if (!normal) {
    parallel_for_cost(divide_up(operand.numel(), kBlock), kBlock, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end && !normal; ++block) look(block);
    });
  }
  return normal ? SplitScale::kNormal : zero ? SplitScale::kZero : SplitScale::kTiny;
}

// Both operands dense.
template <typename T>
class OperandScales {
 public:
  OperandScales(const Tensor& a, const Tensor& b) : a_(split_scale<T>(a)), b_(split_scale<T>(b)) {}
  bool are_tiny() const { return a_ == SplitScale::kTiny || b_ == SplitScale::kTiny; }
  // Sums may all be tiny where an operand is zero.
  bool is_sound(const SumReport& report) const {
    const bool zero = a_ == SplitScale::kZero || b_ == SplitScale::kZero;
    return report.is_finite() && (zero || std::is_same_v<T, F16> || report.is_normal());
  }

 private:
  SplitScale a_, b_;
};

// dense x, channels_last; the pixels that a view reads.
inline Tensor split_images(const Conv2dShape& shape, const Conv2dShape& view, const Tensor& x) {
  const bool reads_all = view.stride[0] == shape.stride[0] && view.stride[1] == shape.stride[1];
  const Tensor pixels = reads_all ? x : dense_in_format(strided_pixels(shape, x), at::MemoryFormat::ChannelsLast);
  return in_view(pixels, shape, view);
}

// Dense operands. False where the sums are not sound.
template <typename T>
bool split_forward(const Conv2dShape& shape, const Tensor& x, const Tensor& weight, bool weight_last,
                   const ConvEpilogue<T>& epilogue, const Tensor& output, at::MemoryFormat output_format) {
  const OperandScales<T> operands(x, weight);
  if (operands.are_tiny()) return false;
  const Conv2dShape view = split_view(shape, ConvPass::kForward, output_format);
  SumReport report;
  pairs_forward(view, split_images(shape, view, x), weight, weight_last, epilogue, in_view(output, shape, view),
                output_format, &report);
  return operands.is_sound(report);
}

template <typename T>
bool split_input_grad(const Conv2dShape& shape, const Tensor& dy_in, const Tensor& weight, bool weight_last,
                      const Tensor& dx_in, at::MemoryFormat dx_format) {
  const OperandScales<T> operands(dy_in, weight);
  if (operands.are_tiny()) return false;
  const Conv2dShape view = split_view(shape, ConvPass::kInputGrad, dx_format);
  const Tensor dy = in_view(dy_in, shape, view), dx = in_view(dx_in, shape, view);
  for (const GradientClass& part : gradient_classes(view)) {
    if (part.taps() == 0) continue;  // dx is zero there
    SumReport report;
    pairs_input_grad<T>(view, part, dy, weight, weight_last, dx, dx_format, &report);
    if (!operands.is_sound(report)) return false;
  }
  return true;
}

// Dense images of one group as the kernel of 1x1 weight gradients sees them.
template <typename T>
PointImages<T> point_images(const Tensor& images, const T* data, bool joined) {
  const int64_t pixels = images.size(2) * images.size(3), channels = images.size(1);
  return joined ? PointImages<T>{data, 0, channels, 1} : PointImages<T>{data, channels * pixels, 1, pixels};
}

// 1x1. dy and x dense in the shape's format; x has the pixels that are read.
template <typename T>
void point_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x, const Tensor& dweight,
                       SumReport& report) {
  const auto& kernel = kernels<T>().conv2d.pairs;
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t pixels = shape.out[0] * shape.out[1];
  // All pixels follow each other, or those of an image do.
  const bool joined = shape.format != kPlanes || pixels == 1;
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
      is_direct ? dweight : at::empty({chunks.pieces, shape.filters, C}, dy.options().dtype(at::kFloat));
  const int64_t items = parts.pieces * chunks.pieces;
  const int64_t cost = shape.images * pixels / chunks.pieces * (C + 1) * (F / parts.pieces + 1) / 32;
  parallel_for_cost(shape.groups * items, cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / items, chunk = i % items / parts.pieces, part = i % parts.pieces;
      const int64_t step = joined ? 1 : pixels;
      const ConvPointGradArgs<T> args{point_images(dy, const_data<T>(dy) + group * F * step, joined),
                                      point_images(x, const_data<T>(x) + group * C * step, joined),
                                      blocks,
                                      F,
                                      C,
                                      mutable_data<float>(sums) + (chunk * shape.filters + group * F) * C,
                                      C};
      const int64_t first = parts.at(part), last = parts.at(part + 1);
      report.add(kernel.point_weight_grad(
          args, chunks.at(chunk), chunks.at(chunk + 1), first, last,
          thread_scratch(kConvScratchSlot, kernel.point_weight_grad_bytes(args, last - first))));
    }
  });
  if (!is_direct) finish_pair_weights<T>(shape, sums, dweight, report);
}

// dweight in either format.
template <typename T>
bool split_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x_in, const Tensor& dweight) {
  const OperandScales<T> operands(dy, x_in);
  if (operands.are_tiny()) return false;
  SumReport report;
  if (is_pointwise(shape)) {
    point_weight_grad<T>(shape, dy, dense_in_format(strided_pixels(shape, x_in), shape.format), dweight, report);
    return operands.is_sound(report);
  }
  const Conv2dShape view = split_view(shape, ConvPass::kWeightGrad, at::MemoryFormat::ChannelsLast);
  const Tensor x = split_images(shape, view, x_in);
  const GradImages<T> read{images_of(x, const_data<T>(x), at::MemoryFormat::ChannelsLast), forward_window(view),
                           view.images};
  const int64_t rows = strip_grad_rows<T>(read.window, shape.channels / shape.groups, shape.filters / shape.groups);
  strip_weight_grad(shape, dy, read, dweight, rows, report);
  return operands.is_sound(report);
}

}  // namespace tilewright

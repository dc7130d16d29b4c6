// float32 as three parts of bfloat16, float16 as two, on tile units (kernels/gemm_split.h): strips of channels_last
// images, 1x1 kernels among them. Sums that are not sound (SumReport) are the caller's to compute another way.
#pragma once
#include "cpu/conv2d_format.h"
#include "cpu/conv2d_pairs_weight_grad.h"
#include "cpu/conv2d_point_grad.h"
#include "cpu/conv2d_pointwise.h"
#include "cpu/conv2d_split_scale.h"

namespace tilewright {

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
  if (result != kPlanes) {
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
  if (pass != ConvPass::kInputGrad && cuts_patches(shape)) {
    // Smaller patches cost more to copy than their products save (4x4 of 3 channels: 0.6 to 0.7x instead of 1.1x).
    constexpr int64_t kSmallestPatch = 128;
    const Conv2dShape pixels = patches_as_pixels(shape);
    return pixels.channels >= kSmallestPatch && split_suits(pixels, dtype, pass, result);
  }
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

// The format it reads images in. Weights' gradients of 1x1 read either, but planes that would not fill a step; patches
// that do not overlap are copied from either.
inline at::MemoryFormat split_format(const Conv2dShape& shape, ConvPass pass) {
  constexpr int64_t kStep = 32;  // pixels of kernels/conv2d_point_grad.h's blocks
  const bool is_point = pass == ConvPass::kWeightGrad && is_pointwise(shape) && shape.out[0] * shape.out[1] >= kStep;
  return is_point || cuts_patches(shape) ? shape.format : at::MemoryFormat::ChannelsLast;
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
bool split_forward(const Conv2dShape& shape, const Tensor& x_in, const Tensor& weight, bool weight_last,
                   const ConvEpilogue<T>& epilogue, const Tensor& output, at::MemoryFormat output_format) {
  if (cuts_patches(shape)) {
    return split_forward(patches_as_pixels(shape), pixels_of_patches(shape, x_in, weight_last),
                         pointwise_weights(weight, weight_last), false, epilogue, output, output_format);
  }
  const Conv2dShape view = split_view(shape, ConvPass::kForward, output_format);
  const Tensor x = split_images(shape, view, x_in);
  const OperandScales<T> operands(x, weight);
  if (operands.are_tiny()) return false;
  SumReport report;
  pairs_forward(view, x, weight, weight_last, epilogue, in_view(output, shape, view), output_format, &report);
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

// The pixels of dense images that a 1x1 kernel reads, dense.
inline Tensor read_pixels(const Conv2dShape& shape, const Tensor& images) {
  const Tensor pixels = strided_pixels(shape, images);
  const bool dense = pixels.is_contiguous() || pixels.is_contiguous(at::MemoryFormat::ChannelsLast);
  return dense ? pixels : changed_format(pixels, shape.format);
}

// dweight in either format.
template <typename T>
bool split_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x_in, const Tensor& dweight) {
  if (cuts_patches(shape)) {
    const bool last = !dweight.is_contiguous();
    return split_weight_grad<T>(patches_as_pixels(shape), dy, pixels_of_patches(shape, x_in, last),
                                pointwise_weights(dweight, last));
  }
  const Tensor x = is_pointwise(shape) ? read_pixels(shape, x_in) : x_in;
  const OperandScales<T> operands(dy, x);
  if (operands.are_tiny()) return false;
  SumReport report;
  if (is_pointwise(shape)) {
    point_weight_grad<T>(shape, dy, x, dweight, report);
  } else {
    const GradImages<T> read = grad_images<T>(shape, x);
    const int64_t rows = strip_grad_rows<T>(read.window, shape.channels / shape.groups, shape.filters / shape.groups);
    strip_weight_grad(shape, dy, read, dweight, rows, report);
  }
  return operands.is_sound(report);
}

}  // namespace tilewright

// float32 as three parts of bfloat16, float16 as two, on tile units (kernels/gemm_split.h): strips of channels_last
// images, 1x1 kernels among them. Sums that are not sound (SumReport) are the caller's to compute another way.
#pragma once
#include <c10/util/env.h>

#include "cpu/conv2d_pairs.h"

namespace tilewright {

// The switch: TILEWRIGHT_SPLIT=0 in the environment, read once.
inline bool split_is_allowed() {
  static const bool is_wanted = c10::utils::get_env("TILEWRIGHT_SPLIT") != "0";
  return is_wanted && kernels<float>().conv2d.pairs.panel > 0;
}

template <typename T>
constexpr bool kCanSplit = std::is_same_v<T, float> || std::is_same_v<T, F16>;

// Whether the products pay for splitting and packing what is multiplied: enough of them for each value that is read,
// more for planes, which are transposed too, and for a weights' gradient, which packs both operands; and for each
// weight. Steps of 32 channels and panels of 32 filters are mostly full. float16 has half the products and parts, and
// would be widened otherwise.
inline bool split_suits(const Conv2dShape& shape, at::ScalarType dtype, ConvPass pass) {
  constexpr int64_t kFewestPixels = 512;
  if ((dtype != at::kFloat && dtype != at::kHalf) || !split_is_allowed()) return false;
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t taps = shape.kernel[0] * shape.kernel[1], pixels = shape.images * shape.out[0] * shape.out[1];
  const bool half = dtype == at::kHalf, planes = shape.format != at::MemoryFormat::ChannelsLast;
  if (std::min(C, F) < (half ? 16 : 32) || pixels < kFewestPixels) return false;
  if (pass == ConvPass::kWeightGrad && taps > 1) {
    const ConvWindow window = forward_window(shape);
    if ((half ? strip_grad_rows<F16>(window, C, F) : strip_grad_rows<float>(window, C, F)) == 0) return false;
  }
  const int64_t read = taps == 1 ? C : C * shape.stride[0] * shape.stride[1];
  const int64_t plain = planes ? 100 : 48, gradient = planes ? 220 : 190;
  const int64_t worth_a_value = (pass == ConvPass::kWeightGrad ? gradient : plain) / (half ? 4 : 1);
  return taps * C * F >= worth_a_value * (read + F);
}

// Beside Winograd's minimal filtering, whose products are float32's: float16 does, while its weights are in cache.
inline bool split_outruns_winograd(const Conv2dShape& shape, at::ScalarType dtype) {
  constexpr int64_t kCachedWeights = 768 * 1024;
  return dtype == at::kHalf && shape.filters * shape.channels * shape.kernel[0] * shape.kernel[1] <= kCachedWeights;
}

// A single tap reads no neighbours: the pixels that it reads are an image of their own, of which it reads all. Returns
// whether it is one.
template <typename T>
bool read_pixels(ConvImages<const T>& in, ConvWindow& window) {
  if (window.rows * window.cols > 1 || window.first_y != 0 || window.first_x != 0 ||
      (window.height - 1) * window.stride_y >= in.height || (window.width - 1) * window.stride_x >= in.width) {
    return false;
  }
  in = every_nth(in, 0, 0, window.stride_y, window.stride_x);
  in.height = window.height;
  in.width = window.width;
  window = {window.height, window.width, 1, 1, 1, 1, 0, 0, 1, 1};
  return true;
}

// Pixels of all images evenly spaced.
template <typename T>
bool is_column(const ConvImages<T>& images) {
  return images.c_stride == 1 && images.y_stride == images.width * images.x_stride &&
         images.n_stride == images.height * images.y_stride;
}
template <typename T>
void join_pixels(ConvImages<T>& images, int64_t count) {
  images.height *= count * images.width;
  images.width = 1;
  images.y_stride = images.x_stride;
}

// A product as strips see it: with a single tap, all pixels of dense images are one column.
template <typename T>
struct SplitProduct {
  ConvImages<const T> in;
  ConvImages<T> out;
  ConvWindow window;
  int64_t images;
};

template <typename T>
SplitProduct<T> split_product(ConvImages<const T> in, ConvImages<T> out, ConvWindow window, int64_t images) {
  if (!read_pixels(in, window) || !is_column(in) || !is_column(out)) return {in, out, window, images};
  join_pixels(in, images);
  join_pixels(out, images);
  window.height = in.height;
  window.width = 1;
  return {in, out, window, 1};
}

// Of a weights' gradient, whose dy is dense.
template <typename T>
GradImages<T> split_grad_images(const Conv2dShape& shape, const Tensor& x) {
  GradImages<T> read = grad_images<T>(shape, x);
  if (!read_pixels(read.in, read.window) || !is_column(read.in)) return read;
  join_pixels(read.in, read.images);
  read.window.height = read.in.height;
  read.window.width = 1;
  read.images = 1;
  return read;
}

template <typename T>
bool run_split(const SplitProduct<T>& product, int64_t groups, int64_t channels, int64_t filters, const Tensor& weights,
               const PairsPlan& plan, const ConvEpilogue<T>& epilogue) {
  return run_conv_strips(ConvPairsArgs<T>{product.in, product.out, product.window, groups, channels, filters,
                                          weights.const_data_ptr(), epilogue, /*checks=*/true},
                         product.images, plan.rows);
}

template <typename T>
bool split_forward(const Conv2dShape& shape, const Tensor& x, const Tensor& weight, bool weight_last,
                   const ConvEpilogue<T>& epilogue, const Tensor& output, at::MemoryFormat output_format) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t taps = shape.kernel[0] * shape.kernel[1];
  const SplitProduct<T> product =
      split_product(images_of(x, const_data<T>(x), shape.format),
                    images_of(output, mutable_data<T>(output), output_format), forward_window(shape), shape.images);
  const PairsPlan plan = plan_pairs<T>(product.window, shape.groups, C, F, product.images);
  if (plan.rows == 0) return false;
  const WeightLayout layout = forward_weights(shape, weight_last, ConvOrder::kTapsOuter, plan.tap_step);
  const Tensor packed =
      pack_conv_pairs(layout, const_data<T>(weight), F * C * taps, shape.groups, taps * plan.tap_step, x.options());
  return run_split<T>(product, shape.groups, C, F, packed, plan, epilogue);
}

template <typename T>
bool split_input_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight, bool weight_last,
                      const Tensor& dx, at::MemoryFormat dx_format) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t group_weights = F * C * shape.kernel[0] * shape.kernel[1];
  for (const GradientClass& part : gradient_classes(shape)) {
    if (part.taps() == 0) continue;  // dx is zero there
    const SplitProduct<T> product =
        split_product(images_of(dy, const_data<T>(dy), shape.format),
                      images_of_class(shape, part, dx, mutable_data<T>(dx), dx_format), part.window(), shape.images);
    const PairsPlan plan = plan_pairs<T>(product.window, shape.groups, F, C, product.images);
    if (plan.rows == 0) return false;
    const WeightLayout layout = gradient_weights(shape, part, weight_last, ConvOrder::kTapsOuter, plan.tap_step);
    const Tensor packed = pack_conv_pairs(layout, const_data<T>(weight), group_weights, shape.groups,
                                          part.taps() * plan.tap_step, dy.options());
    if (!run_split<T>(product, shape.groups, F, C, packed, plan, {})) return false;
  }
  return true;
}

// dy contiguous; dweight in either format.
template <typename T>
bool split_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x, const Tensor& dweight) {
  const GradImages<T> read = split_grad_images<T>(shape, x);
  const int64_t rows = strip_grad_rows<T>(read.window, shape.channels / shape.groups, shape.filters / shape.groups);
  return rows > 0 && strip_weight_grad(shape, dy, read, dweight, rows);
}

}  // namespace tilewright

// 1x1 convolutions without padding: products of matrices as they lie, without patches (cpu/product.h).
//
//                     channels_last                             planes, for each image n
//   forward           out[pixel, f] = x[pixel, c] w[f, c]^T     out[n][f, pixel] = w[f, c] x[n][c, pixel]
//   data gradient     dx[pixel, c]  = dy[pixel, f] w[f, c]      dx[n][c, pixel]  = w[f, c]^T dy[n][f, pixel]
//   weight gradient   dw[f, c]      = dy[pixel, f]^T x[pixel, c]   dw[f, c] = sum over n of dy[n] x[n]^T
// Groups are batch items. With strides, the pixels that are read are copied together first: half of the image or less.
// The data gradient of patches that do not overlap is that of 1x1, too.
#pragma once
#include <ATen/ops/slice.h>
#include <ATen/ops/zeros.h>

#include "cpu/conv2d_format.h"
#include "cpu/product.h"
#include "cpu/tensors.h"
#include "ops/conv2d.h"

namespace tilewright {

// Fewer channels (of a result, of a group) leave most of a vector empty: a product of matrices would be all edges.
constexpr int64_t kFewestChannels = 8;

inline bool is_pointwise(const Conv2dShape& shape) {
  return shape.kernel[0] == 1 && shape.kernel[1] == 1 && shape.padding[0] == 0 && shape.padding[1] == 0 &&
         (shape.groups == 1 || std::min(shape.channels, shape.filters) / shape.groups >= kFewestChannels);
}

// The pixels that a 1x1 kernel with strides reads, as a view.
inline Tensor strided_pixels(const Conv2dShape& shape, const Tensor& images) {
  if (shape.stride[0] == 1 && shape.stride[1] == 1) return images;
  return images.slice(2, 0, c10::nullopt, shape.stride[0]).slice(3, 0, c10::nullopt, shape.stride[1]);
}

// Images as matrices of pixels and channels, or of channels and pixels: which operand they are differs, so rows are
// always what the format has outside.
struct PointwiseLayout {
  int64_t images, groups, pixels;  // pixels of one image
  bool last;
  explicit PointwiseLayout(const Conv2dShape& shape)
      : images(shape.images),
        groups(shape.groups),
        pixels(shape.out[0] * shape.out[1]),
        last(shape.format == at::MemoryFormat::ChannelsLast) {}

  Product product() const {
    Product product;
    product.batch_sizes = {last ? 1 : images, groups};
    product.is_reduced = {false, false};
    return product;
  }
  MatrixOperand of(const void* data, int64_t channels) const {
    const int64_t row = last ? channels : pixels, of_group = channels / groups;
    return {data, row, 1, {last ? 0 : channels * pixels, last ? of_group : of_group * pixels}};
  }
  MatrixOperand of(const Tensor& tensor) const { return of(tensor.const_data_ptr(), tensor.size(1)); }
  // [F, C / groups, 1, 1], contiguous.
  MatrixOperand weight(const Tensor& weight) const {
    const int64_t C = weight.size(1);
    return {weight.const_data_ptr(), C, 1, {0, weight.size(0) / groups * C}};
  }
};

// Short planes would leave much of a panel empty, where pixels of all images share panels otherwise (conv2d_planes.h).
// Groups of channels_last images are narrow matrices, which tiles as wide as they (conv2d_rows.h) multiply faster.
inline bool pointwise_suits(const Conv2dShape& shape, at::ScalarType dtype, ConvPass pass) {
  constexpr int64_t kShortestPlane = 96, kPanel = 32;
  if (!is_pointwise(shape)) return false;
  const bool last = shape.format == at::MemoryFormat::ChannelsLast;
  if (last && shape.groups > 1 && dtype == accumulation_dtype(dtype) && pass != ConvPass::kWeightGrad) return false;
  const int64_t pixels = shape.out[0] * shape.out[1];
  const bool fills_panels = pixels >= kShortestPlane || pixels % kPanel == 0 || dtype == at::kBFloat16;
  return last || fills_panels;
}

inline void pointwise_forward(const Conv2dShape& shape, const Tensor& input, const Tensor& weight, const Tensor& bias,
                              const Tensor& residual, Activation activation, const Tensor& output, const Tensor& pre) {
  const PointwiseLayout layout(shape);
  const Tensor x = dense_in_format(strided_pixels(shape, input), shape.format);
  const int64_t F = shape.filters / shape.groups, rows = shape.images * layout.pixels;
  Product product = layout.product();
  product.K = shape.channels / shape.groups;
  product.M = layout.last ? rows : F;
  product.N = layout.last ? F : layout.pixels;
  product.a = layout.last ? layout.of(x) : layout.weight(weight);
  product.b = layout.last ? transposed(layout.weight(weight)) : layout.of(x);
  product.c = layout.of(output);
  if (residual.defined()) {
    product.addend = layout.of(residual);
  } else if (bias.defined()) {
    const int64_t step = bias.stride(0);
    product.addend = {bias.const_data_ptr(), layout.last ? 0 : step, layout.last ? step : 0, {0, F * step}};
  }
  product.activation = activation;
  product.pre = pre.defined() ? pre.mutable_data_ptr() : nullptr;
  run_product(product, input.scalar_type(), "conv2d");
}

inline void pointwise_input_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight, const Tensor& dx) {
  const PointwiseLayout layout(shape);
  const Tensor pixels = strided_pixels(shape, dx);
  const bool strided = !pixels.is_same(dx);
  const Tensor dense = strided ? at::empty(pixels.sizes(), dx.options().memory_format(shape.format)) : dx;
  const int64_t C = shape.channels / shape.groups, rows = shape.images * layout.pixels;
  Product product = layout.product();
  product.K = shape.filters / shape.groups;
  product.M = layout.last ? rows : C;
  product.N = layout.last ? C : layout.pixels;
  product.a = layout.last ? layout.of(dy) : transposed(layout.weight(weight));
  product.b = layout.last ? layout.weight(weight) : layout.of(dy);
  product.c = layout.of(dense);
  run_product(product, dy.scalar_type(), "conv2d_backward");
  if (strided) pixels.copy_(dense);
}

// Kernels as large as their strides cut the image into patches that do not overlap. With few channels, the data
// gradient of a class of pixels (conv2d_windows.h) would be a narrow product for each tap.
inline bool cuts_patches(const Conv2dShape& shape) {
  bool cuts = shape.groups == 1 && shape.channels < kFewestChannels;
  for (int i = 0; i < 2; ++i) {
    cuts = cuts && shape.kernel[i] == shape.stride[i] && shape.dilation[i] == 1 && shape.padding[i] == 0;
  }
  return cuts && shape.kernel[0] * shape.kernel[1] > 1;
}

// The same as a 1x1 kernel with a patch's elements for channels.
inline Conv2dShape patches_as_pixels(const Conv2dShape& shape) {
  Conv2dShape pointwise = shape;
  pointwise.channels = shape.channels * shape.kernel[0] * shape.kernel[1];
  pointwise.height = shape.out[0];
  pointwise.width = shape.out[1];
  for (int i = 0; i < 2; ++i) pointwise.kernel[i] = pointwise.stride[i] = 1;
  return pointwise;
}

// The images' patches as a view, [N, C, OH, KH, OW, KW].
inline Tensor cut_into_patches(const Conv2dShape& shape, const Tensor& images) {
  const int64_t KH = shape.kernel[0], KW = shape.kernel[1], OH = shape.out[0], OW = shape.out[1];
  return images.slice(2, 0, OH * KH).slice(3, 0, OW * KW).unflatten(3, {OW, KW}).unflatten(2, {OH, KH});
}

// A copy of them as channels_last images of patches_as_pixels, elements in the order of weights: channels_last
// (weight_last) or contiguous.
inline Tensor pixels_of_patches(const Conv2dShape& shape, const Tensor& images, bool weight_last) {
  const int64_t C = shape.channels, KH = shape.kernel[0], KW = shape.kernel[1], OH = shape.out[0], OW = shape.out[1];
  const Tensor patches = cut_into_patches(shape, images);
  const Tensor copy =
      weight_last ? patches.permute({0, 2, 4, 3, 5, 1}).contiguous() : patches.permute({0, 2, 4, 1, 3, 5}).contiguous();
  return copy.view({shape.images, OH, OW, C * KH * KW}).permute({0, 3, 1, 2});
}

// Weights, contiguous in one format or the other, as those of patches_as_pixels.
inline Tensor pointwise_weights(const Tensor& weight, bool weight_last) {
  const Tensor rows = weight_last ? weight.permute({0, 2, 3, 1}) : weight;
  return rows.view({weight.size(0), -1, 1, 1});
}

inline void patches_input_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight, const Tensor& dx) {
  const Conv2dShape pointwise = patches_as_pixels(shape);
  const Tensor patches = at::empty({shape.images, pointwise.channels, shape.out[0], shape.out[1]},
                                   dx.options().memory_format(shape.format));
  pointwise_input_grad(pointwise, dy, pointwise_weights(weight, /*weight_last=*/false), patches);
  if (shape.out[0] * shape.kernel[0] < shape.height || shape.out[1] * shape.kernel[1] < shape.width) dx.zero_();
  cut_into_patches(shape, dx).copy_(
      patches.unflatten(1, {shape.channels, shape.kernel[0], shape.kernel[1]}).permute({0, 1, 4, 2, 5, 3}));
}

// A few channels do not fill a panel of columns where filters do: dw^T is computed, and transposed.
inline bool turns_weight_grad(const Conv2dShape& shape, at::ScalarType dtype) {
  constexpr int64_t kPanel = 32;
  return shape.format == at::MemoryFormat::ChannelsLast && shape.groups == 1 && shape.channels < kPanel &&
         shape.filters > kPanel && dtype == accumulation_dtype(dtype);
}

// With the bias's gradient, [filters] in the accumulation type, where it is wanted and dy is read transposed, which
// copies it anyway; undefined otherwise.
inline Tensor pointwise_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& input,
                                    const Tensor& dweight, bool wants_bias) {
  const PointwiseLayout layout(shape);
  const Tensor x = dense_in_format(strided_pixels(shape, input), shape.format);
  const bool turns = turns_weight_grad(shape, dy.scalar_type());
  const Tensor &left = turns ? x : dy, &right = turns ? dy : x;
  const Tensor result = turns ? at::empty({shape.channels, shape.filters, 1, 1}, dweight.options()) : dweight;
  Product product = layout.product();
  product.is_reduced = {true, false};
  product.M = left.size(1) / shape.groups;
  product.N = right.size(1) / shape.groups;
  product.K = layout.last ? shape.images * layout.pixels : layout.pixels;
  product.a = layout.last ? transposed(layout.of(left)) : layout.of(left);
  product.b = layout.last ? layout.of(right) : transposed(layout.of(right));
  product.c = layout.weight(result);
  Tensor sums;
  if (wants_bias && shape.groups == 1 && !turns) {
    sums = at::zeros({shape.filters}, dy.options().dtype(accumulation_dtype(dy.scalar_type())));
    product.left_sums = sums.mutable_data_ptr();
  }
  const bool has_sums = run_product(product, dy.scalar_type(), "conv2d_backward");
  if (turns) dweight.copy_(result.transpose(0, 1));
  return has_sums ? sums : Tensor();
}

}  // namespace tilewright

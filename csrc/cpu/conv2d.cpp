// conv2d on the CPU: brings the tensors into one memory format, then depthwise or dense kernels do the work.
#include "ops/conv2d.h"

#include <ATen/ops/index_select.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/tensor.h>

#include "cpu/conv2d_depthwise.h"
#include "cpu/conv2d_pointwise.h"
#include "cpu/conv2d_rows.h"
#include "cpu/conv2d_winograd_weight_grad.h"
#include "ops/linear.h"

namespace tilewright {
namespace {

constexpr auto kPlanes = at::MemoryFormat::Contiguous;

// Readable by the kernels of the format without a copy: its innermost dimension has stride 1.
Tensor in_format(const Tensor& tensor, at::MemoryFormat format) {
  const int64_t inner = format == kPlanes ? 3 : 1;
  return tensor.stride(inner) == 1 ? tensor : tensor.contiguous(format);
}

// Weights contiguous in one format or the other: both are packed without a copy.
struct DenseWeight {
  Tensor tensor;
  bool channels_last;
};
DenseWeight dense_weight(const Tensor& weight) {
  const bool last = !weight.is_contiguous() && weight.is_contiguous(at::MemoryFormat::ChannelsLast);
  return {last ? weight : weight.contiguous(), last};
}

// Groups of few filters fill a vector of pixels, not one of filters: such channels_last images are worked on as planes.
bool prefers_planes(const Conv2dShape& shape) {
  constexpr int64_t kFewFilters = 16;
  return shape.format != kPlanes && shape.groups > 1 && !is_depthwise(shape) &&
         std::max(shape.filters, shape.channels) / shape.groups < kFewFilters;
}

// Planes of narrow images waste a block's columns at every row's end: with enough channels to fill vectors of filters,
// copying such images to channels_last and back costs less.
bool prefers_channels_last(const Conv2dShape& shape) {
  constexpr int64_t kNarrow = 8, kManyChannels = 32;
  return shape.format == kPlanes && shape.groups == 1 && shape.out[1] <= kNarrow &&
         shape.kernel[0] * shape.kernel[1] > 1 && std::min(shape.filters, shape.channels) >= kManyChannels;
}

// The format the kernels work in, whatever the result is promised in.
at::MemoryFormat working_format(const Conv2dShape& shape, at::ScalarType dtype) {
  if (winograd_suits(shape, dtype)) return shape.format;
  if (prefers_planes(shape)) return kPlanes;
  return prefers_channels_last(shape) ? at::MemoryFormat::ChannelsLast : shape.format;
}

// A result that was computed in one format, in the format it is promised in.
Tensor result_in(const Tensor& result, at::MemoryFormat computed, at::MemoryFormat promised) {
  if (computed == promised || !result.defined()) return result;
  return at::empty(result.sizes(), result.options().memory_format(promised)).copy_(result);
}

std::tuple<Tensor, Tensor> conv2d_forward_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias_opt,
                                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                              int64_t groups, c10::string_view activation_name, bool saves,
                                              const OptionalTensor& residual_opt) {
  const Tensor bias_in = value_or_undefined(bias_opt), residual_in = value_or_undefined(residual_opt);
  const Activation activation = activation_from_name(activation_name);
  Conv2dShape shape = check_conv2d(input, weight, bias_in, stride, padding, dilation, groups);
  const auto dtype = input.scalar_type();
  const std::array<int64_t, 4> size = shape.output_size();
  check_conv2d_residual(shape, input, residual_in);
  const bool saves_pre = saves && gradient_reads_input(activation);
  if (shape.empty()) {
    return {at::empty(size, input.options()), saves_pre ? at::empty(size, input.options()) : Tensor()};
  }
  const auto result_format = shape.format;
  shape.format = working_format(shape, input.scalar_type());

  Tensor output = at::empty(size, input.options().memory_format(shape.format));
  Tensor pre = saves_pre ? at::empty_like(output) : Tensor();
  const Tensor x = in_format(input, shape.format);
  const Tensor bias = as_accumulator(bias_in, dtype);
  // The kernels read the residual at the output's offsets.
  const Tensor residual = residual_in.defined() ? residual_in.contiguous(shape.format) : residual_in;
  if (pointwise_suits(shape, dtype) && !(bias.defined() && residual.defined())) {
    pointwise_forward(shape, x, weight.contiguous(), bias_in, residual, activation, output, pre);
    return {result_in(output, shape.format, result_format), result_in(pre, shape.format, result_format)};
  }
  dispatch_floating(dtype, "conv2d", [&](auto element) {
    using T = decltype(element);
    const ConvEpilogue<T> epilogue{const_data<Acc<T>>(bias), const_data<T>(residual), activation, mutable_data<T>(pre)};
    if (is_depthwise(shape)) return depthwise_forward<T>(shape, x, weight, epilogue, output);
    const auto [packed_from, weight_last] = dense_weight(weight);
    if (winograd_suits(shape, dtype) && winograd_forward<T>(shape, x, packed_from, weight_last, epilogue, output)) {
      return;
    }
    if (shape.format != kPlanes) return rows_forward<T>(shape, x, packed_from, weight_last, epilogue, output);
    dense_forward<T>(shape, x, packed_from, weight_last, epilogue, output);
  });
  return {result_in(output, shape.format, result_format), result_in(pre, shape.format, result_format)};
}

Tensor input_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight) {
  const bool depthwise = is_depthwise(shape);
  // Where the kernel skips pixels, their gradient is 0.
  bool every_pixel = true;
  for (const GradientClass& part : gradient_classes(shape)) every_pixel = every_pixel && part.taps() > 0;
  const std::array<int64_t, 4> size{shape.images, depthwise ? shape.filters : shape.channels, shape.height,
                                    shape.width};
  Tensor dx = at::empty(size, dy.options().memory_format(shape.format));
  if (!every_pixel) dx.zero_();
  if (pointwise_suits(shape, dy.scalar_type())) {
    pointwise_input_grad(shape, dy.contiguous(shape.format), weight.contiguous(), dx);
    return dx;
  }
  dispatch_floating(dy.scalar_type(), "conv2d_backward", [&](auto element) {
    using T = decltype(element);
    if (depthwise) return depthwise_input_grad<T>(shape, dy, weight, dx);
    const auto [packed_from, weight_last] = dense_weight(weight);
    if (winograd_suits(shape, dy.scalar_type()) && winograd_input_grad<T>(shape, dy, packed_from, weight_last, dx)) {
      return;
    }
    if (shape.format != kPlanes) return rows_input_grad<T>(shape, dy, packed_from, weight_last, dx);
    dense_input_grad<T>(shape, dy, packed_from, weight_last, dx);
  });
  if (size[1] == shape.channels) return dx;
  const auto sums = accumulation_dtype(dy.scalar_type());
  return dx.view({shape.images, shape.channels, -1, shape.height, shape.width})
      .sum(2, /*keepdim=*/false, sums)
      .to(dy.scalar_type())
      .contiguous(shape.format);
}

Tensor weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x, const Tensor& weight) {
  Tensor dweight =
      at::empty(weight.sizes(), weight.options().memory_format(conv2d_weight_grad_format(shape, weight, shape.format)));
  if (pointwise_suits(shape, dy.scalar_type())) {
    pointwise_weight_grad(shape, dy.contiguous(shape.format), x, dweight);
    return dweight;
  }
  dispatch_floating(dy.scalar_type(), "conv2d_backward", [&](auto element) {
    using T = decltype(element);
    if (is_depthwise(shape)) {
      dweight.copy_(depthwise_weight_grad<T>(shape, dy, x).reshape(weight.sizes()));
    } else if (!winograd_suits(shape, dy.scalar_type()) || !winograd_weight_grad<T>(shape, dy, x, dweight)) {
      shape.format != kPlanes ? rows_weight_grad<T>(shape, dy, x, dweight)
                              : dense_weight_grad<T>(shape, dy, x, dweight);
    }
  });
  return dweight;
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                       const Tensor& weight, at::IntArrayRef stride,
                                                       at::IntArrayRef padding, at::IntArrayRef dilation,
                                                       int64_t groups, std::array<bool, 3> output_mask) {
  Conv2dShape shape = check_conv2d(input, weight, Tensor(), stride, padding, dilation, groups);
  check_conv2d_gradient(shape, input, grad_output);
  const auto result_format = shape.format;
  Tensor dx, dweight, dbias;
  if (shape.empty()) {
    if (output_mask[0]) dx = at::zeros(input.sizes(), input.options());
    if (output_mask[1]) dweight = at::zeros_like(weight);
    if (output_mask[2]) dbias = at::zeros({shape.filters}, weight.options());
    return {dx, dweight, dbias};
  }
  shape.format = working_format(shape, input.scalar_type());
  const Tensor dy = in_format(grad_output, shape.format);
  if (output_mask[0]) dx = result_in(input_grad(shape, dy, weight), shape.format, result_format);
  if (output_mask[1]) {
    const Tensor x = in_format(input, shape.format);
    dweight = result_in(weight_grad(shape, dy, x, weight), shape.format,
                        conv2d_weight_grad_format(shape, weight, result_format));
  }
  if (output_mask[2]) {
    dispatch_floating(dy.scalar_type(), "conv2d_backward",
                      [&](auto element) { dbias = bias_grad<decltype(element)>(shape, dy).to(weight.scalar_type()); });
  }
  return {dx, dweight, dbias};
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) {
  m.impl("conv2d_forward", tilewright::conv2d_forward_cpu);
  m.impl("conv2d_backward", tilewright::conv2d_backward_cpu);
}

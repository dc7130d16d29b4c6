// Depthwise conv2d on the GPU: brings the tensors into one memory format and hands pointers to the kernels.
#include "cuda/depthwise.h"

#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "cuda/call.h"
#include "cuda/registration.h"
#include "ops/depthwise.h"
#include "ops/linear.h"

namespace tilewright::gpu {
namespace {

DepthwiseGeometry geometry_of(const Conv2dShape& shape, bool gathers) {
  DepthwiseGeometry geometry = {};
  for (int d = 0; d < 2; ++d) {
    geometry.kernel[d] = static_cast<int>(shape.kernel[d]);
    geometry.stride[d] = static_cast<int>(shape.stride[d]);
    geometry.padding[d] = static_cast<int>(shape.padding[d]);
    // That of a single tap is never used, and may be of any size.
    geometry.dilation[d] = shape.kernel[d] == 1 ? 1 : static_cast<int>(shape.dilation[d]);
  }
  geometry.gathers = gathers;
  geometry.channels_last = shape.format == at::MemoryFormat::ChannelsLast;
  return geometry;
}

// data points into `tensor`, [N, C, H, W].
template <typename T>
DepthwiseImages<T> images_of(const Tensor& tensor, T* data) {
  return {data, static_cast<int>(tensor.size(1)), static_cast<int>(tensor.size(2)), static_cast<int>(tensor.size(3))};
}

Tensor empty_in(const Tensor& like, at::IntArrayRef sizes, at::MemoryFormat format) {
  return at::empty(sizes, like.options().memory_format(format));
}

std::tuple<Tensor, Tensor> depthwise_forward_cuda(const Tensor& input, const Tensor& weight,
                                                  const OptionalTensor& bias_opt, at::IntArrayRef stride,
                                                  at::IntArrayRef padding, at::IntArrayRef dilation,
                                                  c10::string_view activation_name, bool saves,
                                                  const OptionalTensor& residual_opt) {
  const Tensor bias_in = value_or_undefined(bias_opt), residual_in = value_or_undefined(residual_opt);
  const Activation activation = activation_from_name(activation_name);
  const Conv2dShape shape = check_depthwise(input, weight, bias_in, stride, padding, dilation);
  check_conv2d_residual(shape, input, residual_in);
  const bool saves_pre = saves && gradient_reads_input(activation);
  const auto size = shape.output_size();
  const auto format = shape.empty() ? at::MemoryFormat::Contiguous : shape.format;
  const Call call("depthwise conv2d", input, {&weight, &bias_in, &residual_in});
  Tensor output = empty_in(input, size, format);
  Tensor saved = saves_pre ? empty_in(input, size, format) : Tensor();
  if (shape.empty()) return {output, saved};
  const Tensor x = input.contiguous(format), bias = contiguous(bias_in);
  const Tensor residual = residual_in.defined() ? residual_in.contiguous(format) : residual_in;
  dispatch_floating(input.scalar_type(), "conv2d", [&](auto element) {
    using T = decltype(element);
    const DepthwiseArgs<T> args{images_of(x, const_data<T>(x)),
                                images_of(output, mutable_data<T>(output)),
                                shape.images,
                                geometry_of(shape, /*gathers=*/false),
                                {const_data<T>(weight), weight.stride(0), weight.stride(2), weight.stride(3)},
                                static_cast<int>(shape.filters / shape.channels),
                                const_data<T>(bias),
                                const_data<T>(residual),
                                mutable_data<T>(saved),
                                activation};
    call.check(depthwise(args, call.launch()));
  });
  return {output, saved};
}

Tensor input_grad(const Call& call, const Conv2dShape& shape, const Tensor& dy, const Tensor& weight) {
  Tensor dx = empty_in(dy, {shape.images, shape.channels, shape.height, shape.width}, shape.format);
  dispatch_floating(dy.scalar_type(), "conv2d_backward", [&](auto element) {
    using T = decltype(element);
    const DepthwiseArgs<T> args{images_of(dy, const_data<T>(dy)),
                                images_of(dx, mutable_data<T>(dx)),
                                shape.images,
                                geometry_of(shape, /*gathers=*/true),
                                {const_data<T>(weight), weight.stride(0), weight.stride(2), weight.stride(3)},
                                static_cast<int>(shape.filters / shape.channels),
                                nullptr,
                                nullptr,
                                nullptr,
                                Activation::kNone};
    call.check(depthwise(args, call.launch()));
  });
  return dx;
}

// Fills those of dweight and dbias that are defined.
void weight_grads(const Call& call, const Conv2dShape& shape, const Tensor& dy, const Tensor& input,
                  const Tensor& dweight, const Tensor& dbias) {
  const Tensor x = input.contiguous(shape.format);
  const bool last = shape.format == at::MemoryFormat::ChannelsLast;
  const int64_t parts = depthwise_weight_parts(shape.images * shape.out[0] * shape.out[1], shape.filters, last);
  const Tensor partials = empty_like_in(dy, {parts, shape.kernel[0] * shape.kernel[1] + 1, shape.filters},
                                        accumulation_dtype(dy.scalar_type()));
  const auto stride = [&](int64_t d) { return dweight.defined() ? dweight.stride(d) : 0; };
  dispatch_floating(dy.scalar_type(), "conv2d_backward", [&](auto element) {
    using T = decltype(element);
    const DepthwiseWeightArgs<T> args{images_of(x, const_data<T>(x)),
                                      images_of(dy, const_data<T>(dy)),
                                      shape.images,
                                      geometry_of(shape, /*gathers=*/false),
                                      static_cast<int>(shape.filters / shape.channels),
                                      mutable_data<Acc<T>>(partials),
                                      mutable_data<T>(dweight),
                                      stride(0),
                                      stride(2),
                                      stride(3),
                                      mutable_data<T>(dbias)};
    call.check(depthwise_weight_gradient(args, call.launch()));
  });
}

std::tuple<Tensor, Tensor, Tensor> depthwise_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                                           const Tensor& weight, at::IntArrayRef stride,
                                                           at::IntArrayRef padding, at::IntArrayRef dilation,
                                                           std::array<bool, 3> output_mask) {
  const Conv2dShape shape = check_depthwise(input, weight, Tensor(), stride, padding, dilation);
  check_conv2d_gradient(shape, input, grad_output);
  const Call call("depthwise conv2d's backward", input, {&grad_output, &weight});
  Tensor dx, dweight, dbias;
  if (shape.empty()) {
    if (output_mask[0]) dx = at::zeros(input.sizes(), input.options());
    if (output_mask[1]) dweight = at::zeros_like(weight);
    if (output_mask[2]) dbias = at::zeros({shape.filters}, weight.options());
    return {dx, dweight, dbias};
  }
  const Tensor dy = grad_output.contiguous(shape.format);
  if (output_mask[0]) dx = input_grad(call, shape, dy, weight);
  if (output_mask[1]) {
    dweight = empty_in(weight, weight.sizes(), conv2d_weight_grad_format(shape, weight, shape.format));
  }
  if (output_mask[2]) dbias = empty_like_in(weight, {shape.filters}, weight.scalar_type());
  if (output_mask[1] || output_mask[2]) weight_grads(call, shape, dy, input, dweight, dbias);
  return {dx, dweight, dbias};
}

}  // namespace
}  // namespace tilewright::gpu

TILEWRIGHT_CUDA_LIBRARY(depthwise, m) {
  m.impl("depthwise_forward", tilewright::gpu::depthwise_forward_cuda);
  m.impl("depthwise_backward", tilewright::gpu::depthwise_backward_cuda);
}

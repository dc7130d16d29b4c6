// layer_norm on the GPU: Tensors to rows, and the partial rows of the parameters' gradients.
#include "ops/layer_norm.h"

#include "cuda/call.h"
#include "cuda/layer_norm.h"
#include "cuda/registration.h"

namespace tilewright::gpu {
namespace {

bool is_wide(const Tensor& parameter, at::ScalarType dtype) {
  return parameter.defined() && parameter.scalar_type() != dtype;
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward_cuda(const Tensor& input, at::IntArrayRef normalized_shape,
                                                           const OptionalTensor& weight_opt,
                                                           const OptionalTensor& bias_opt, double eps) {
  const Tensor weight_in = value_or_undefined(weight_opt), bias_in = value_or_undefined(bias_opt);
  const auto [rows, cols] = check_layer_norm(input, normalized_shape, weight_in, bias_in);
  const auto dtype = input.scalar_type(), sum_dtype = accumulation_dtype(dtype);
  const Call call("layer_norm", input, {&weight_in, &bias_in});
  const Tensor x = input.contiguous(), weight = contiguous(weight_in), bias = contiguous(bias_in);
  Tensor output = empty_like_in(input, input.sizes(), dtype);
  const auto stat_shape = layer_norm_stat_shape(input.sizes(), normalized_shape);
  Tensor mean = empty_like_in(input, stat_shape, sum_dtype), rstd = empty_like_in(input, stat_shape, sum_dtype);
  if (rows == 0) return {output, mean, rstd};
  dispatch_floating(dtype, "layer_norm", [&](auto element) {
    using T = decltype(element);
    const LayerNormForwardArgs<T> args{const_data<T>(x),
                                       any_data(weight),
                                       any_data(bias),
                                       is_wide(weight, dtype),
                                       is_wide(bias, dtype),
                                       mutable_data<T>(output),
                                       mutable_data<Acc<T>>(mean),
                                       mutable_data<Acc<T>>(rstd),
                                       rows,
                                       cols,
                                       static_cast<Acc<T>>(eps)};
    call.check(layer_norm_forward(args, call.launch()));
  });
  return {output, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                                            at::IntArrayRef normalized_shape, const Tensor& mean,
                                                            const Tensor& rstd, const OptionalTensor& weight_opt,
                                                            std::array<bool, 3> output_mask) {
  const Tensor weight_in = value_or_undefined(weight_opt);
  const auto [rows, cols] = check_layer_norm_backward(grad_output, input, normalized_shape, mean, rstd, weight_in);
  const auto dtype = input.scalar_type();
  const auto parameter_dtype = weight_in.defined() ? weight_in.scalar_type() : dtype;
  const Call call("layer_norm_backward", input, {&grad_output, &mean, &rstd, &weight_in});
  const Tensor dy = grad_output.contiguous(), x = input.contiguous(), weight = contiguous(weight_in);
  const Tensor means = mean.contiguous(), rstds = rstd.contiguous();
  const auto gradient = [&](bool wanted, at::IntArrayRef shape, at::ScalarType type) {
    return wanted ? empty_like_in(input, shape, type) : Tensor();
  };
  Tensor dx = gradient(output_mask[0], input.sizes(), dtype);
  Tensor dweight = gradient(output_mask[1], normalized_shape, parameter_dtype);
  Tensor dbias = gradient(output_mask[2], normalized_shape, parameter_dtype);
  if (input.numel() == 0) {
    if (dweight.defined()) dweight.zero_();
    if (dbias.defined()) dbias.zero_();
    return {dx, dweight, dbias};
  }
  const bool wants_parameters = output_mask[1] || output_mask[2];
  if (!dx.defined() && !wants_parameters) return {dx, dweight, dbias};
  const Tensor partials =
      gradient(wants_parameters, {2, layer_norm_partial_rows(rows, cols), cols}, accumulation_dtype(dtype));
  dispatch_floating(dtype, "layer_norm_backward", [&](auto element) {
    using T = decltype(element);
    const LayerNormBackwardArgs<T> args{const_data<T>(dy),
                                        const_data<T>(x),
                                        any_data(weight),
                                        is_wide(weight, dtype),
                                        const_data<Acc<T>>(means),
                                        const_data<Acc<T>>(rstds),
                                        mutable_data<T>(dx),
                                        any_mutable_data(dweight),
                                        any_mutable_data(dbias),
                                        parameter_dtype != dtype,
                                        mutable_data<Acc<T>>(partials),
                                        rows,
                                        cols};
    call.check(layer_norm_backward(args, call.launch()));
  });
  return {dx, dweight, dbias};
}

}  // namespace
}  // namespace tilewright::gpu

TILEWRIGHT_CUDA_LIBRARY(layer_norm, m) {
  m.impl("layer_norm_forward", tilewright::gpu::layer_norm_forward_cuda);
  m.impl("layer_norm_backward", tilewright::gpu::layer_norm_backward_cuda);
}

// dropout_add_layer_norm on the GPU: Tensors to rows, and the partial rows of the parameters' gradients.
#include "ops/dropout_add_layer_norm.h"

#include "cuda/call.h"
#include "cuda/dropout_add_layer_norm.h"
#include "cuda/registration.h"
#include "ops/dropout.h"

namespace tilewright::gpu {
namespace {

constexpr const char* kName = "dropout_add_layer_norm";

bool is_wide(const Tensor& parameter, at::ScalarType dtype) {
  return parameter.defined() && parameter.scalar_type() != dtype;
}

// Of an undefined seed: nothing is dropped.
template <typename A>
Dropout<A> dropout_of(const Tensor& seed, double p) {
  return make_dropout<A>(seed.defined() ? seed.const_data_ptr<int64_t>() : nullptr, p);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm_forward_cuda(
    const Tensor& input, const Tensor& residual, at::IntArrayRef normalized_shape, const OptionalTensor& weight_opt,
    const OptionalTensor& bias_opt, double eps, const OptionalTensor& seed_opt, double p, bool keep_sum) {
  const Tensor weight_in = value_or_undefined(weight_opt), bias_in = value_or_undefined(bias_opt),
               seed = value_or_undefined(seed_opt);
  const auto [rows, cols] = check_dropout_add_layer_norm_forward(input, residual, normalized_shape, weight_in, bias_in);
  if (seed.defined()) check_dropout_seed(kName, seed, input.device(), p);
  const auto dtype = input.scalar_type(), sum_dtype = accumulation_dtype(dtype);
  const Call call(kName, input, {&residual, &weight_in, &bias_in});
  const Tensor x = input.contiguous(), r = residual.contiguous();
  const Tensor weight = contiguous(weight_in), bias = contiguous(bias_in);
  Tensor output = empty_like_in(input, input.sizes(), dtype);
  Tensor sum = empty_like_in(input, keep_sum ? input.sizes() : at::IntArrayRef{0}, dtype);
  const auto stat_shape = layer_norm_stat_shape(input.sizes(), normalized_shape);
  Tensor mean = empty_like_in(input, stat_shape, sum_dtype), rstd = empty_like_in(input, stat_shape, sum_dtype);
  if (rows == 0) return {output, sum, mean, rstd};
  const LayerNormSize size{rows, cols};
  dispatch_floating(dtype, kName, [&](auto element) {
    using T = decltype(element);
    const LayerNormForwardArgs<T> norm{const_data<T>(x),
                                       any_data(weight),
                                       any_data(bias),
                                       is_wide(weight, dtype),
                                       is_wide(bias, dtype),
                                       mutable_data<T>(output),
                                       mutable_data<Acc<T>>(mean),
                                       mutable_data<Acc<T>>(rstd),
                                       size.rows,
                                       size.cols,
                                       static_cast<Acc<T>>(eps)};
    const DropoutAddLayerNormForwardArgs<T> args{norm, const_data<T>(r), keep_sum ? mutable_data<T>(sum) : nullptr,
                                                 dropout_of<Acc<T>>(seed, p)};
    call.check(dropout_add_layer_norm_forward(args, call.launch()));
  });
  return {output, sum, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm_backward_cuda(
    const Tensor& grad_output, const OptionalTensor& grad_sum_opt, const Tensor& sum, at::IntArrayRef normalized_shape,
    const Tensor& mean, const Tensor& rstd, const OptionalTensor& weight_opt, const OptionalTensor& seed_opt, double p,
    std::array<bool, 4> output_mask) {
  const Tensor weight_in = value_or_undefined(weight_opt), grad_sum = value_or_undefined(grad_sum_opt),
               seed = value_or_undefined(seed_opt);
  const auto [rows, cols] = check_dropout_add_layer_norm_backward(grad_output, grad_sum, sum, normalized_shape, mean,
                                                                  rstd, weight_in, seed, output_mask[0]);
  if (seed.defined()) check_dropout_seed(kName, seed, sum.device(), p);
  const auto dtype = sum.scalar_type();
  const auto parameter_dtype = weight_in.defined() ? weight_in.scalar_type() : dtype;
  const Call call("dropout_add_layer_norm_backward", sum, {&grad_output, &grad_sum, &mean, &rstd, &weight_in});
  const Tensor dy = grad_output.contiguous(), z = sum.contiguous(), dsum = contiguous(grad_sum),
               weight = contiguous(weight_in), means = mean.contiguous(), rstds = rstd.contiguous();
  const auto gradient = [&](bool wanted, at::IntArrayRef shape, at::ScalarType type) {
    return wanted ? empty_like_in(sum, shape, type) : Tensor();
  };
  Tensor dinput = gradient(output_mask[0], sum.sizes(), dtype),
         dresidual = gradient(output_mask[1], sum.sizes(), dtype);
  Tensor dweight = gradient(output_mask[2], normalized_shape, parameter_dtype);
  Tensor dbias = gradient(output_mask[3], normalized_shape, parameter_dtype);
  if (sum.numel() == 0) {
    if (dweight.defined()) dweight.zero_();
    if (dbias.defined()) dbias.zero_();
    return {dinput, dresidual, dweight, dbias};
  }
  const bool wants_parameters = output_mask[2] || output_mask[3];
  if (!dinput.defined() && !dresidual.defined() && !wants_parameters) return {dinput, dresidual, dweight, dbias};
  const Tensor partials =
      gradient(wants_parameters, {2, layer_norm_partial_rows(rows, cols), cols}, accumulation_dtype(dtype));
  const LayerNormSize size{rows, cols};
  dispatch_floating(dtype, kName, [&](auto element) {
    using T = decltype(element);
    const LayerNormBackwardArgs<T> norm{const_data<T>(dy),
                                        const_data<T>(z),
                                        any_data(weight),
                                        is_wide(weight, dtype),
                                        const_data<Acc<T>>(means),
                                        const_data<Acc<T>>(rstds),
                                        mutable_data<T>(dresidual),
                                        any_mutable_data(dweight),
                                        any_mutable_data(dbias),
                                        parameter_dtype != dtype,
                                        mutable_data<Acc<T>>(partials),
                                        size.rows,
                                        size.cols};
    const DropoutAddLayerNormBackwardArgs<T> args{norm, const_data<T>(dsum), mutable_data<T>(dinput),
                                                  dropout_of<Acc<T>>(seed, p)};
    call.check(dropout_add_layer_norm_backward(args, call.launch()));
  });
  return {dinput, dresidual, dweight, dbias};
}

}  // namespace
}  // namespace tilewright::gpu

TILEWRIGHT_CUDA_LIBRARY(dropout_add_layer_norm, m) {
  m.impl("dropout_add_layer_norm_forward", tilewright::gpu::dropout_add_layer_norm_forward_cuda);
  m.impl("dropout_add_layer_norm_backward", tilewright::gpu::dropout_add_layer_norm_backward_cuda);
}

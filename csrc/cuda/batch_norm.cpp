// batch_norm on the GPU: Tensors to the layout they lie in, and the partial results of channels summed in parts.
#include "ops/batch_norm.h"

#include "cuda/batch_norm.h"
#include "cuda/call.h"
#include "cuda/registration.h"
#include "ops/linear.h"

namespace tilewright::gpu {
namespace {

BatchNormShape shape_of(const Tensor& input, at::MemoryFormat format) {
  const int64_t channels = input.size(1), count = input.numel() / std::max<int64_t>(1, channels);
  if (batch_norm_is_rows(input, format, count)) return {count, channels, 1, true};
  const int64_t images = channels == 1 ? 1 : input.size(0);
  return {images, channels, count / std::max<int64_t>(1, images), false};
}

Tensor empty_in_format(const Tensor& like, at::MemoryFormat format) {
  return at::empty(like.sizes(), like.options().memory_format(format));
}

// All parameters of a call have one dtype: is it the accumulation type beside a 16-bit input?
bool are_wide(std::initializer_list<const Tensor*> parameters, at::ScalarType dtype) {
  return std::any_of(parameters.begin(), parameters.end(), [dtype](const Tensor* parameter) {
    return parameter->defined() && parameter->scalar_type() != dtype;
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_forward_cuda(
    const Tensor& input, const OptionalTensor& weight_opt, const OptionalTensor& bias_opt,
    const OptionalTensor& mean_opt, const OptionalTensor& var_opt, double eps, const OptionalTensor& residual_opt,
    c10::string_view activation_name, bool saves) {
  const bool training = !is_defined(mean_opt);
  check_batch_norm(input, weight_opt, bias_opt, mean_opt, var_opt, training);
  const Tensor residual_in = value_or_undefined(residual_opt);
  check_batch_norm_residual(residual_in, input);
  const Activation activation = activation_from_name(activation_name);
  const auto dtype = input.scalar_type(), sum_dtype = accumulation_dtype(dtype);
  const auto format = batch_norm_format(input);
  const Tensor weight = contiguous(value_or_undefined(weight_opt)), bias = contiguous(value_or_undefined(bias_opt));
  const Tensor given_mean = contiguous(value_or_undefined(mean_opt)),
               given_var = contiguous(value_or_undefined(var_opt));
  const Call call("batch_norm", input, {&weight, &bias, &given_mean, &given_var, &residual_in});
  Tensor output = empty_in_format(input, format);
  Tensor pre = saves && gradient_reads_input(activation) ? empty_in_format(input, format) : Tensor();
  Tensor mean = empty_like_in(input, {input.size(1)}, sum_dtype),
         var = empty_like_in(input, {input.size(1)}, sum_dtype);
  if (input.numel() == 0) {
    if (training) {
      mean.zero_(), var.zero_();
    } else {
      mean.copy_(given_mean), var.copy_(given_var);
    }
    return {output, mean, var, pre};
  }
  const Tensor x = input.contiguous(format);
  const Tensor residual = residual_in.defined() ? residual_in.contiguous(format) : residual_in;
  const BatchNormShape shape = shape_of(input, format);
  dispatch_floating(dtype, "batch_norm", [&](auto element) {
    using T = decltype(element);
    const int64_t parts = training ? batch_norm_parts<T>(shape) : 1;
    const Tensor partials = parts > 1 ? empty_like_in(input, {2, parts, shape.channels}, at::kDouble) : Tensor();
    const BatchNormForwardArgs<T> args{const_data<T>(x),
                                       const_data<T>(residual),
                                       mutable_data<T>(output),
                                       mutable_data<T>(pre),
                                       any_data(weight),
                                       any_data(bias),
                                       any_data(given_mean),
                                       any_data(given_var),
                                       are_wide({&weight, &bias, &given_mean, &given_var}, dtype),
                                       mutable_data<Acc<T>>(mean),
                                       mutable_data<Acc<T>>(var),
                                       mutable_data<double>(partials),
                                       activation,
                                       static_cast<Acc<T>>(eps),
                                       shape};
    call.check(batch_norm_forward(args, call.launch()));
  });
  return {output, mean, var, pre};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                                                    const Tensor& mean_in, const Tensor& var_in,
                                                                    const OptionalTensor& weight_opt,
                                                                    const OptionalTensor& output_opt, double eps,
                                                                    bool training, std::array<bool, 4> output_mask) {
  check_batch_norm(input, weight_opt, {}, {}, {}, /*training=*/true);
  const Tensor output_in = value_or_undefined(output_opt);
  check_batch_norm_backward(grad_output, input, mean_in, var_in, output_in, output_mask);
  const Tensor weight = contiguous(value_or_undefined(weight_opt));
  const auto dtype = input.scalar_type(), sum_dtype = accumulation_dtype(dtype);
  const auto parameter_dtype = weight.defined() ? weight.scalar_type() : sum_dtype;
  const auto format = batch_norm_format(input);
  const Call call("batch_norm_backward", input, {&grad_output, &mean_in, &var_in, &weight, &output_in});
  const auto parameter_gradient = [&](bool wanted) {
    return wanted ? empty_like_in(input, {input.size(1)}, parameter_dtype) : Tensor();
  };
  Tensor dx = output_mask[0] ? empty_in_format(input, batch_norm_gradient_format(input)) : Tensor();
  Tensor dresidual = output_mask[3] ? empty_in_format(input, format) : Tensor();
  Tensor dweight = parameter_gradient(output_mask[1]), dbias = parameter_gradient(output_mask[2]);
  if (input.numel() == 0) {
    if (dweight.defined()) dweight.zero_();
    if (dbias.defined()) dbias.zero_();
    return {dx, dweight, dbias, dresidual};
  }
  if (!dx.defined() && !dweight.defined() && !dbias.defined() && !dresidual.defined()) return {};
  const bool has_sums = dweight.defined() || dbias.defined() || (training && dx.defined());
  const Tensor dy = grad_output.contiguous(format), x = input.contiguous(format);
  const Tensor y = output_in.defined() ? output_in.contiguous(format) : output_in;
  const Tensor mean = mean_in.contiguous(), var = var_in.contiguous();
  const BatchNormShape shape = shape_of(input, format);
  dispatch_floating(dtype, "batch_norm_backward", [&](auto element) {
    using T = decltype(element);
    const int64_t parts = has_sums ? batch_norm_parts<T>(shape) : 1;
    // [2, parts, channels] partial sums and [2, channels] factors
    const Tensor workspace = parts > 1 ? empty_like_in(input, {2 * (parts + 1), shape.channels}, sum_dtype) : Tensor();
    auto* partials = mutable_data<Acc<T>>(workspace);
    const BatchNormBackwardArgs<T> args{const_data<T>(dy),
                                        const_data<T>(x),
                                        const_data<T>(y),
                                        any_data(weight),
                                        parameter_dtype != dtype,
                                        const_data<Acc<T>>(mean),
                                        const_data<Acc<T>>(var),
                                        mutable_data<T>(dx),
                                        mutable_data<T>(dresidual),
                                        any_mutable_data(dweight),
                                        any_mutable_data(dbias),
                                        parameter_dtype != dtype,
                                        partials,
                                        parts > 1 ? partials + 2 * parts * shape.channels : nullptr,
                                        training,
                                        static_cast<Acc<T>>(eps),
                                        shape};
    call.check(batch_norm_backward(args, call.launch()));
  });
  if (dx.defined()) dx = dx.contiguous(input.suggest_memory_format());
  return {dx, dweight, dbias, dresidual};
}

void batch_norm_update_stats_cuda(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean,
                                  const Tensor& var, int64_t count, double momentum) {
  check_batch_norm_update_stats(running_mean, running_var, mean, var);
  if (count == 0 || running_mean.numel() == 0) return;
  const Call call("batch_norm_update_stats_", running_mean, {&running_var, &mean, &var});
  dispatch_floating(running_mean.scalar_type(), "batch_norm_update_stats_", [&](auto element) {
    using T = decltype(element);
    // One value has no unbiased variance: 0 * infinity is the NaN that native gives.
    const BatchNormUpdateArgs<T> args{mutable_data<T>(running_mean),
                                      mutable_data<T>(running_var),
                                      running_mean.stride(0),
                                      running_var.stride(0),
                                      const_data<Acc<T>>(mean),
                                      const_data<Acc<T>>(var),
                                      running_mean.numel(),
                                      static_cast<double>(count) / static_cast<double>(count - 1),
                                      momentum};
    call.check(batch_norm_update_stats(args, call.launch()));
  });
}

}  // namespace
}  // namespace tilewright::gpu

TILEWRIGHT_CUDA_LIBRARY(batch_norm, m) {
  m.impl("batch_norm_forward", tilewright::gpu::batch_norm_forward_cuda);
  m.impl("batch_norm_update_stats_", tilewright::gpu::batch_norm_update_stats_cuda);
  m.impl("batch_norm_backward", tilewright::gpu::batch_norm_backward_cuda);
}

// batch_norm on the CPU: which layout, which tasks, which threads. Tasks and the order in which their partial results
// are merged (in float64) depend on the shape alone, so the result is the same for any number of threads; only whether
// a channel's passes run back to back, while it is in cache, depends on how many there are.
#include "ops/batch_norm.h"

#include "cpu/batch_norm_plan.h"
#include "cpu/widened.h"
#include "ops/linear.h"

namespace tilewright {
namespace {

// Native's rule for a variance and an eps of 0 in training; in evaluation the quotient is infinite, as native's is.
double reciprocal_deviation(double var, double eps, bool training) {
  return training && var == 0.0 && eps == 0.0 ? 0.0 : 1.0 / std::sqrt(var + eps);
}

template <typename T>
struct BatchNormForward {
  const BatchNormPlan& plan;
  Tensor x, weight, bias, residual, output, saved, mean, var;
  double eps;
  Activation activation;
  bool training;

  void run() {
    using A = Acc<T>;
    const BatchNormShape& shape = plan.shape;
    const auto partials = uninitialised<double>(training ? 2 * shape.channels * shape.blocks : 0);
    const auto factors = uninitialised<A>(2 * shape.channels);
    double *means = partials.get(), *m2s = means + shape.channels * shape.blocks;
    A *scale = factors.get(), *shift = scale + shape.channels;
    const BatchNormStatsArgs<T> stats{const_data<T>(x), means, m2s, shape};
    const bool keeps_bits = gradient_reads_output(activation);
    const BatchNormApplyArgs<T> apply{
        const_data<T>(x),
        const_data<T>(residual),
        mutable_data<T>(output),
        const_data<A>(mean),
        scale,
        shift,
        keeps_bits ? nullptr : mutable_data<T>(saved),
        keeps_bits ? mutable_data<uint8_t>(saved) : nullptr,
        activation,
        streams_past_cache(x.nbytes() * (2 + residual.defined() + (saved.defined() && !keeps_bits))),
        shape};
    const A *w = const_data<A>(weight), *b = const_data<A>(bias);
    A *mean_out = mutable_data<A>(mean), *var_out = mutable_data<A>(var);
    const auto merge = [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        if (training) merge_stats(c, means, m2s, mean_out, var_out);
        scale[c] = static_cast<A>(reciprocal_deviation(var_out[c], eps, training) * (w != nullptr ? w[c] : A(1)));
        shift[c] = b != nullptr ? b[c] : A(0);
      }
    };
    const auto& pass = passes<T>(plan);
    run_passes(
        plan, /*reduces=*/training, /*maps=*/true, sizeof(T) * (residual.defined() ? 2 : 1),
        [&](int64_t begin, int64_t end) { pass.stats(stats, begin, end); }, merge,
        [&](const BatchNormLines& lines) { pass.apply(apply, lines); });
  }

  void merge_stats(int64_t channel, const double* means, const double* m2s, Acc<T>* mean_out, Acc<T>* var_out) {
    const double count = static_cast<double>(plan.count);
    double sum = 0.0, m2 = 0.0;
    for_each_block(plan, channel, [&](int64_t i, int64_t n) { sum += means[i] * static_cast<double>(n); });
    const double centre = sum / count;
    for_each_block(plan, channel, [&](int64_t i, int64_t n) {
      const double distance = means[i] - centre;
      m2 += m2s[i] + distance * distance * static_cast<double>(n);
    });
    mean_out[channel] = static_cast<Acc<T>>(centre);
    var_out[channel] = static_cast<Acc<T>>(m2 / count);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_forward_cpu(const Tensor& input, const OptionalTensor& weight,
                                                                  const OptionalTensor& bias,
                                                                  const OptionalTensor& given_mean,
                                                                  const OptionalTensor& given_var, double eps,
                                                                  const OptionalTensor& residual_opt,
                                                                  c10::string_view activation_name, bool saves) {
  const bool training = !is_defined(given_mean);
  check_batch_norm(input, weight, bias, given_mean, given_var, training);
  const Tensor residual = value_or_undefined(residual_opt);
  check_batch_norm_residual(residual, input);
  const Activation activation = activation_from_name(activation_name);
  const auto dtype = input.scalar_type();
  const BatchNormPlan plan = plan_batch_norm(input);
  Tensor output = empty_cpu(input.sizes(), dtype, plan.format);
  Tensor saved;
  if (saves && activation != Activation::kNone) {
    saved = gradient_reads_output(activation) ? empty_bits(batch_norm_bits_size(plan))
                                              : empty_cpu(input.sizes(), dtype, plan.format);
  }
  Tensor mean = empty_cpu({plan.shape.channels}, accumulation_dtype(dtype)),
         var = empty_cpu(mean.sizes(), mean.scalar_type());
  if (!training) {
    mean.copy_(*given_mean);
    var.copy_(*given_var);
  }
  if (input.numel() == 0) {
    if (training) mean.zero_(), var.zero_();
    if (saved.defined() && saved.scalar_type() == at::kByte) saved.zero_();
    return {output, mean, var, saved};
  }
  dispatch_floating(dtype, "batch_norm", [&](auto element) {
    BatchNormForward<decltype(element)>{plan,
                                        input.contiguous(plan.format),
                                        widened(value_or_undefined(weight), dtype),
                                        widened(value_or_undefined(bias), dtype),
                                        residual.defined() ? residual.contiguous(plan.format) : residual,
                                        output,
                                        saved,
                                        mean,
                                        var,
                                        eps,
                                        activation,
                                        training}
        .run();
  });
  return {output, mean, var, saved};
}

template <typename T>
struct BatchNormBackward {
  const BatchNormPlan& plan;
  Tensor dy, x, passing_bits, mean, var, weight, grad_input, grad_weight, grad_bias, grad_residual;
  double eps;
  bool training;

  void run() {
    using A = Acc<T>;
    const BatchNormShape& shape = plan.shape;
    const bool wants_sums = grad_weight.defined() || grad_bias.defined() || (training && grad_input.defined());
    const auto partials = uninitialised<double>(wants_sums ? 2 * shape.channels * shape.blocks : 0);
    const auto factors = uninitialised<A>(3 * shape.channels);
    double *sums_g = partials.get(), *sums_gx = sums_g + shape.channels * shape.blocks;
    A *scale = factors.get(), *mean_g = scale + shape.channels, *slope = mean_g + shape.channels;
    const BatchNormSumsArgs<T> sums{const_data<T>(dy),
                                    const_data<T>(x),
                                    const_data<uint8_t>(passing_bits),
                                    const_data<A>(mean),
                                    sums_g,
                                    sums_gx,
                                    shape};
    const BatchNormGradArgs<T> grad{const_data<T>(dy),
                                    const_data<T>(x),
                                    const_data<uint8_t>(passing_bits),
                                    mutable_data<T>(grad_input),
                                    mutable_data<T>(grad_residual),
                                    const_data<A>(mean),
                                    scale,
                                    mean_g,
                                    training ? slope : nullptr,
                                    streams_past_cache(x.nbytes() * (grad_residual.defined() ? 4 : 3)),
                                    shape};
    const A *w = const_data<A>(weight), *vars = const_data<A>(var);
    A *dweight = mutable_data<A>(grad_weight), *dbias = mutable_data<A>(grad_bias);
    const double count = static_cast<double>(plan.count);
    const auto merge = [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        double sum_g = 0.0, sum_gx = 0.0;
        if (wants_sums) {
          for_each_block(plan, c, [&](int64_t i, int64_t) { sum_g += sums_g[i], sum_gx += sums_gx[i]; });
        }
        const double rstd = reciprocal_deviation(vars[c], eps, training);
        scale[c] = static_cast<A>(rstd * (w != nullptr ? w[c] : A(1)));
        mean_g[c] = static_cast<A>(sum_g / count);
        slope[c] = static_cast<A>(sum_gx * rstd * rstd / count);
        if (dweight != nullptr) dweight[c] = static_cast<A>(sum_gx * rstd);
        if (dbias != nullptr) dbias[c] = static_cast<A>(sum_g);
      }
    };
    const auto& pass = passes<T>(plan);
    run_passes(
        plan, /*reduces=*/wants_sums, /*maps=*/grad_input.defined(), 2 * sizeof(T),
        [&](int64_t begin, int64_t end) { pass.sums(sums, begin, end); }, merge,
        [&](const BatchNormLines& lines) { pass.grad(grad, lines); });
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                                   const Tensor& mean, const Tensor& var,
                                                                   const OptionalTensor& weight_opt,
                                                                   const OptionalTensor& activated_opt, double eps,
                                                                   bool training, std::array<bool, 4> output_mask) {
  check_batch_norm(input, weight_opt, {}, {}, {}, /*training=*/true);
  const Tensor weight = value_or_undefined(weight_opt), passing_bits = value_or_undefined(activated_opt);
  check_batch_norm_backward(grad_output, input, mean, var, passing_bits, output_mask);
  const auto dtype = input.scalar_type(), sum_dtype = accumulation_dtype(dtype);
  const BatchNormPlan plan = plan_batch_norm(input);
  TORCH_CHECK(!passing_bits.defined() || (passing_bits.scalar_type() == at::kByte && passing_bits.is_contiguous() &&
                                          passing_bits.numel() == batch_norm_bits_size(plan)),
              "batch_norm_backward: activated must be what batch_norm_forward saved, ", batch_norm_bits_size(plan),
              " bytes of bits, got ", passing_bits.sizes(), " of ", passing_bits.scalar_type());
  const auto parameter_gradient = [&](bool wanted) {
    return wanted ? empty_cpu({plan.shape.channels}, sum_dtype) : Tensor();
  };
  // The gradient of a residual comes with dx in one pass; dx goes nowhere where only the former is wanted.
  const bool wants_pass = output_mask[0] || output_mask[3];
  Tensor grad_input = wants_pass ? empty_cpu(input.sizes(), dtype, batch_norm_gradient_format(input)) : Tensor();
  Tensor grad_residual = output_mask[3] ? empty_cpu(input.sizes(), dtype, plan.format) : Tensor();
  Tensor grad_weight = parameter_gradient(output_mask[1]), grad_bias = parameter_gradient(output_mask[2]);
  if (input.numel() == 0) {
    if (grad_weight.defined()) grad_weight.zero_();
    if (grad_bias.defined()) grad_bias.zero_();
  } else {
    dispatch_floating(dtype, "batch_norm_backward", [&](auto element) {
      BatchNormBackward<decltype(element)>{plan,
                                           grad_output.contiguous(plan.format),
                                           input.contiguous(plan.format),
                                           passing_bits,
                                           mean.contiguous(),
                                           var.contiguous(),
                                           widened(weight, dtype),
                                           grad_input,
                                           grad_weight,
                                           grad_bias,
                                           grad_residual,
                                           eps,
                                           training}
          .run();
    });
  }
  if (weight.defined() && weight.scalar_type() != sum_dtype) {
    if (grad_weight.defined()) grad_weight = grad_weight.to(weight.scalar_type());
    if (grad_bias.defined()) grad_bias = grad_bias.to(weight.scalar_type());
  }
  if (output_mask[0]) grad_input = grad_input.contiguous(input.suggest_memory_format());
  return {output_mask[0] ? grad_input : Tensor(), grad_weight, grad_bias, grad_residual};
}

template <typename R, typename A>
void update(const Tensor& running, const Tensor& batch, double factor, double momentum) {
  R* out = running.mutable_data_ptr<R>();
  const A* in = batch.const_data_ptr<A>();
  const int64_t stride = running.stride(0), size = running.numel();
  for (int64_t c = 0; c < size; ++c) {
    const double value = static_cast<double>(in[c]) * factor, before = static_cast<double>(out[c * stride]);
    out[c * stride] = static_cast<R>(momentum * value + (1.0 - momentum) * before);
  }
}

void batch_norm_update_stats_cpu(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean,
                                 const Tensor& var, int64_t count, double momentum) {
  check_batch_norm_update_stats(running_mean, running_var, mean, var);
  if (count == 0) return;
  // One value has no unbiased variance: 0 * infinity is the NaN that native gives.
  const double unbiased = static_cast<double>(count) / static_cast<double>(count - 1);
  const auto both = [&](auto running, auto sum) {
    update<decltype(running), decltype(sum)>(running_mean, mean, 1.0, momentum);
    update<decltype(running), decltype(sum)>(running_var, var, unbiased, momentum);
  };
  switch (running_mean.scalar_type()) {
    case at::kFloat:
      return both(float{}, float{});
    case at::kDouble:
      return both(double{}, double{});
    case at::kBFloat16:
      return both(c10::BFloat16{}, float{});
    case at::kHalf:
      return both(c10::Half{}, float{});
    default:
      TORCH_CHECK(false, "batch_norm_update_stats_: running_mean must be floating point, got ",
                  running_mean.scalar_type());
  }
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) {
  m.impl("batch_norm_forward", tilewright::batch_norm_forward_cpu);
  m.impl("batch_norm_update_stats_", tilewright::batch_norm_update_stats_cpu);
  m.impl("batch_norm_backward", tilewright::batch_norm_backward_cpu);
}

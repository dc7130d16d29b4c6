// batch_norm's gradient, with an optional residual and relu behind it. Per channel of n values, with g = dy where relu
// let it through (else 0) and xc = x - mean:
//   training    dx = rstd * weight * (g - mean(g) - xc * rstd^2 * mean(g * xc))
//   evaluation  dx = rstd * weight * g
//   dweight = rstd * sum(g * xc),  dbias = sum(g),  dresidual = g
#include "ops/batch_norm.h"

#include <ATen/Context.h>
#include <ATen/ops/add.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>

#include "autograd/native_backward.h"
#include "ops/delegate.h"

namespace tilewright {
namespace {

// What is not differentiated: autograd sees only the tensors beside it.
struct BatchNormOptions {
  OptionalTensor running_mean, running_var;
  bool training;
  double momentum, eps;
  bool relu;
};

std::tuple<Tensor, Tensor, Tensor> run_forward(const Tensor& input, const OptionalTensor& weight,
                                               const OptionalTensor& bias, const OptionalTensor& residual,
                                               const BatchNormOptions& options) {
  const OptionalTensor none;
  const OptionalTensor &mean = options.training ? none : options.running_mean,
                       &var = options.training ? none : options.running_var;
  std::tuple<Tensor, Tensor, Tensor> result;
  {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    result = batch_norm_forward(input, weight, bias, mean, var, options.eps, residual, options.relu);
  }
  if (options.training && is_defined(options.running_mean)) {
    // As native's, this change to the running statistics is not counted as an in-place change by autograd.
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    batch_norm_update_stats(*options.running_mean, *options.running_var, std::get<1>(result), std::get<2>(result),
                            input.sym_numel() / std::max(input.sym_size(1), c10::SymInt(1)), options.momentum);
  }
  return result;
}

class BatchNormFunction : public torch::autograd::Function<BatchNormFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& residual, const BatchNormOptions& options) {
    auto [output, mean, var] = run_forward(input, weight, bias, residual, options);
    ctx->save_for_backward({input, value_or_undefined(weight), value_or_undefined(bias), value_or_undefined(residual),
                            mean, var, options.relu ? output : Tensor()});
    ctx->saved_data["eps"] = options.eps;
    // The dtype that native wants its statistics in, should the backward have to be replayed.
    const auto dtype = is_defined(options.running_mean) ? options.running_mean->scalar_type() : mean.scalar_type();
    ctx->saved_data["training, relu, dtype"] = static_cast<int64_t>(options.training) +
                                               2 * static_cast<int64_t>(options.relu) + 4 * static_cast<int64_t>(dtype);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &bias = saved[2], &residual = saved[3], &mean = saved[4],
                 &var = saved[5], &output = saved[6];
    const double eps = ctx->saved_data["eps"].toDouble();
    const int64_t flags = ctx->saved_data["training, relu, dtype"].toInt();
    const bool training = flags & 1, relu = flags & 2;
    const auto needs = inputs_needing_grad(ctx, {true, weight.defined(), bias.defined(), residual.defined()});
    if (at::GradMode::is_enabled()) {
      const auto dtype = static_cast<at::ScalarType>(flags / 4);
      const Tensor given_mean = training ? Tensor() : mean.to(dtype), given_var = training ? Tensor() : var.to(dtype);
      auto grads = native_backward(
          {input, weight, bias, residual}, needs, grad_outputs, [&](const variable_list& in) -> variable_list {
            Tensor y = at::batch_norm(in[0], in[1], in[2], given_mean, given_var, training, 0.0, eps,
                                      /*cudnn_enabled=*/false);
            if (in[3].defined()) y = at::add(y, in[3]);
            return {relu ? at::relu(y) : y};
          });
      return {grads[0], grads[1], grads[2], grads[3], Tensor()};
    }
    at::AutoDispatchBelowADInplaceOrView
        below_autograd;  // above it the op would be boxed for autograd's fallback: 1 us
    auto [grad_input, grad_weight, grad_bias, grad_residual] =
        batch_norm_backward(grad_outputs[0], input, mean, var, weight, relu ? OptionalTensor(output) : OptionalTensor(),
                            eps, training, {needs[0], needs[1], needs[2], needs[3] && relu});
    if (needs[3] && !relu) grad_residual = grad_outputs[0];
    // Native takes parameters of any shape that has C elements.
    if (grad_weight.defined() && weight.dim() != 1) grad_weight = grad_weight.view_symint(weight.sym_sizes());
    if (grad_bias.defined() && bias.dim() != 1) grad_bias = grad_bias.view_symint(bias.sym_sizes());
    return {grad_input, grad_weight, grad_bias, grad_residual, Tensor()};
  }
};

enum class Activation { kNone, kRelu, kGelu, kGeluTanh, kSilu };

Activation parse_activation(c10::string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "silu") return Activation::kSilu;
  TORCH_CHECK_VALUE(false, "batch_norm_act: activation must be none, relu, gelu, gelu_tanh or silu, got '", name, "'");
}

Tensor activate(const Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kSilu:
      return at::silu(x);
  }
  return x;
}

// The kernel takes a residual exactly like the input; native broadcasts and promotes any other.
bool is_like(const Tensor& input, const OptionalTensor& residual) {
  return !is_defined(residual) ||
         (residual->scalar_type() == input.scalar_type() && residual->device() == input.device() &&
          residual->sym_sizes().equals(input.sym_sizes()));
}

Tensor batch_norm_with(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& residual, const BatchNormOptions& options) {
  if (records_grad(input, weight, bias, residual)) {
    return BatchNormFunction::apply(input, weight, bias, residual, options);
  }
  return std::get<0>(run_forward(input, weight, bias, residual, options));
}

// Native has no derivative for the running statistics and says so; its message is as good as ours.
bool goes_to_native(const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                    const OptionalTensor& weight, const OptionalTensor& bias) {
  return use_native(input, running_mean, running_var, weight, bias) || records_grad(running_mean, running_var);
}

Tensor batch_norm(const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                  const OptionalTensor& weight, const OptionalTensor& bias, bool training, double momentum,
                  double eps) {
  if (goes_to_native(input, running_mean, running_var, weight, bias)) {
    return at::batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps,
                          at::globalContext().userEnabledCuDNN());
  }
  check_batch_norm(input, weight, bias, running_mean, running_var, training);
  return batch_norm_with(input, weight, bias, {}, {running_mean, running_var, training, momentum, eps, false});
}

Tensor batch_norm_act(const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                      const OptionalTensor& weight, const OptionalTensor& bias, bool training, double momentum,
                      double eps, c10::string_view activation_name, const OptionalTensor& residual) {
  const Activation activation = parse_activation(activation_name);
  const bool native = goes_to_native(input, running_mean, running_var, weight, bias) || use_native(residual);
  if (native || !is_like(input, residual)) {
    Tensor y = batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps);
    if (is_defined(residual)) y = at::add(y, *residual);
    return activate(y, activation);
  }
  check_batch_norm(input, weight, bias, running_mean, running_var, training);
  const bool relu = activation == Activation::kRelu;
  const Tensor y =
      batch_norm_with(input, weight, bias, residual, {running_mean, running_var, training, momentum, eps, relu});
  return relu ? y : activate(y, activation);
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CompositeImplicitAutograd, m) {
  m.impl("batch_norm", tilewright::batch_norm);
  m.impl("batch_norm_act", tilewright::batch_norm_act);
}
TORCH_LIBRARY_IMPL(tilewright, FuncTorchBatched, m) {
  m.impl("batch_norm", tilewright::batch_norm);
  m.impl("batch_norm_act", tilewright::batch_norm_act);
}

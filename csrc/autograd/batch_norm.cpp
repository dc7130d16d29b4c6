// batch_norm's gradient, with an optional residual and activation behind it. Per channel of n values, with g = dy *
// act' and xc = x - mean:
//   training    dx = rstd * weight * (g - mean(g) - xc * rstd^2 * mean(g * xc))
//   evaluation  dx = rstd * weight * g
//   dweight = rstd * sum(g * xc),  dbias = sum(g),  dresidual = g
// g is made in the same pass for relu, by the sign of the output, and on the CPU for relu6, both from bits that the
// forward saved there; else in a pass of its own, of relu6 by the output, of the others from what act was applied to.
#include "ops/batch_norm.h"

#include <ATen/Context.h>
#include <ATen/ops/add.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "autograd/native_backward.h"
#include "ops/delegate.h"
#include "ops/linear.h"

namespace tilewright {
namespace {

// What is not differentiated: autograd sees only the tensors beside it.
struct BatchNormOptions {
  OptionalTensor running_mean, running_var;
  bool training;
  double momentum, eps;
  std::string activation;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> run_forward(const Tensor& input, const OptionalTensor& weight,
                                                       const OptionalTensor& bias, const OptionalTensor& residual,
                                                       const BatchNormOptions& options, bool saves) {
  const OptionalTensor none;
  const OptionalTensor &mean = options.training ? none : options.running_mean,
                       &var = options.training ? none : options.running_var;
  std::tuple<Tensor, Tensor, Tensor, Tensor> result;
  {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    result = batch_norm_forward(input, weight, bias, mean, var, options.eps, residual, options.activation, saves);
  }
  if (options.training && is_defined(options.running_mean)) {
    // As native's, this change to the running statistics is not counted as an in-place change by autograd.
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    batch_norm_update_stats(*options.running_mean, *options.running_var, std::get<1>(result), std::get<2>(result),
                            input.sym_numel() / std::max(input.sym_size(1), c10::SymInt(1)), options.momentum);
  }
  return result;
}

// The bias that was not saved.
std::vector<c10::SymInt> bias_shape(const AutogradContext* ctx, const Tensor& input) {
  const auto found = ctx->saved_data.find("bias_shape");
  if (found != ctx->saved_data.end()) return found->second.toSymIntVector();
  return {input.sym_size(1)};
}

bool is_bits(const Tensor& activated) { return activated.defined() && activated.scalar_type() == at::kByte; }

// Of what autograd can differentiate again, for relu and relu6; activated: forward's output, or its bits.
Tensor differentiable_gradient(const Tensor& grad, const Tensor& activated, const Tensor& input, Activation kind) {
  if (!is_bits(activated)) return native_gradient_by_output(grad, activated, kind);
  return at::where(batch_norm_passing_mask(activated, input), grad, at::zeros({}, grad.options()));
}

class BatchNormFunction : public torch::autograd::Function<BatchNormFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& residual, const BatchNormOptions& options) {
    auto [output, mean, var, saved] = run_forward(input, weight, bias, residual, options, /*saves=*/true);
    const Activation kind = activation_from_name(options.activation);
    // No gradient depends on bias and residual, so they are not saved and may be changed; unless what a gelu or silu
    // was applied to has to be computed again, for gradients of gradients.
    const bool replays = gradient_reads_input(kind);
    ctx->save_for_backward(
        {input, value_or_undefined(weight), mean, var, !saved.defined() && gradient_reads_output(kind) ? output : saved,
         replays ? value_or_undefined(bias) : Tensor(), replays ? value_or_undefined(residual) : Tensor()});
    ctx->saved_data["eps"] = options.eps;
    // The dtypes that native wants its statistics and its bias in, should the backward have to be replayed.
    const auto dtype = is_defined(options.running_mean) ? options.running_mean->scalar_type() : mean.scalar_type();
    const auto bias_dtype = is_defined(bias) ? bias->scalar_type() : dtype;
    ctx->saved_data["flags"] = static_cast<int64_t>(options.training) | static_cast<int64_t>(is_defined(bias)) << 1 |
                               static_cast<int64_t>(is_defined(residual)) << 2 | static_cast<int64_t>(dtype) << 8 |
                               static_cast<int64_t>(bias_dtype) << 16 |
                               static_cast<int64_t>(batch_norm_format(input)) << 24;
    ctx->saved_data["activation"] = options.activation;
    if (is_defined(bias) && bias->dim() != 1) ctx->saved_data["bias_shape"] = bias->sym_sizes().vec();  // native's rule
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &weight = saved[1], &mean = saved[2], &var = saved[3], &activated = saved[4], &saved_bias = saved[5],
                 &residual = saved[6];
    const double eps = ctx->saved_data["eps"].toDouble();
    const int64_t flags = ctx->saved_data["flags"].toInt();
    const bool training = flags & 1, has_bias = flags & 2, has_residual = flags & 4;
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    const Activation kind = activation_from_name(activation);
    const bool by_output = gradient_reads_output(kind);
    // The bits lie as the forward's input did, and hooks on saved tensors may give one that lies in another way.
    const auto format = static_cast<at::MemoryFormat>(flags >> 24);
    const bool moved = is_bits(activated) && batch_norm_format(saved[0]) != format;
    const Tensor input = moved ? saved[0].contiguous(format) : saved[0];
    const auto needs = inputs_needing_grad(ctx, {true, weight.defined(), has_bias, has_residual});
    if (wants_differentiable(grad_outputs)) {
      const auto dtype = static_cast<at::ScalarType>(flags >> 8 & 255);
      const auto bias_dtype = static_cast<at::ScalarType>(flags >> 16 & 255);
      const Tensor given_mean = training ? Tensor() : mean.to(dtype), given_var = training ? Tensor() : var.to(dtype);
      Tensor bias = saved_bias;
      if (has_bias && !bias.defined()) {
        bias = at::zeros_symint(bias_shape(ctx, input), input.options().dtype(bias_dtype));
      }
      // Differentiable in itself: the gradients of relu and relu6 need no replay.
      const Tensor grad =
          by_output ? differentiable_gradient(grad_outputs[0], activated, input, kind) : grad_outputs[0];
      auto grads = native_backward({input, weight, bias, residual}, {needs[0], needs[1], needs[2], needs[3]}, {grad},
                                   [&](const variable_list& in) -> variable_list {
                                     Tensor y = at::batch_norm(in[0], in[1], in[2], given_mean, given_var, training,
                                                               0.0, eps, /*cudnn_enabled=*/false);
                                     if (in[3].defined()) y = at::add(y, in[3]);
                                     return {gradient_reads_input(kind) ? native_activation(y, kind) : y};
                                   });
      const bool passes_on = needs[3] && !gradient_reads_input(kind);
      return {grads[0], grads[1], grads[2], passes_on ? grad : grads[3], Tensor()};
    }
    at::AutoDispatchBelowADInplaceOrView
        below_autograd;  // above it the op would be boxed for autograd's fallback: 1 us
    const bool masks = kind == Activation::kRelu || is_bits(activated);  // in the kernel
    const Tensor grad = kind == Activation::kNone || masks
                            ? grad_outputs[0]
                            : activation_backward(grad_outputs[0], activated, activation);
    auto [grad_input, grad_weight, grad_bias, grad_residual] =
        batch_norm_backward(grad, input, mean, var, weight, masks ? OptionalTensor(activated) : OptionalTensor(), eps,
                            training, {needs[0], needs[1], needs[2], needs[3] && masks});
    if (needs[3] && !masks) grad_residual = grad;
    // Native takes parameters of any shape that has C elements.
    if (grad_weight.defined() && weight.dim() != 1) grad_weight = grad_weight.view_symint(weight.sym_sizes());
    if (grad_bias.defined() && ctx->saved_data.count("bias_shape") != 0) {
      grad_bias = grad_bias.view_symint(bias_shape(ctx, input));
    }
    return {grad_input, grad_weight, grad_bias, grad_residual, Tensor()};
  }
};

// The kernel takes a residual exactly like the input; native broadcasts and promotes any other.
bool is_like(const Tensor& input, const OptionalTensor& residual) {
  return !is_defined(residual) ||
         (residual->scalar_type() == input.scalar_type() && residual->device() == input.device() &&
          residual->sym_sizes().equals(input.sym_sizes()));
}

// A residual that broadcasts to the input's shape, in that shape.
OptionalTensor broadcast_residual(const Tensor& input, const OptionalTensor& residual) {
  if (!is_defined(residual) || residual->dim() > input.dim()) return residual;
  const auto own = residual->sym_sizes(), size = input.sym_sizes();
  if (own.equals(size)) return residual;
  for (size_t d = 0; d < own.size(); ++d) {
    if (own[d] != 1 && own[d] != size[size.size() - own.size() + d]) return residual;
  }
  return residual->expand_symint(size);
}

Tensor batch_norm_with(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& residual, const BatchNormOptions& options) {
  if (records_grad(input, weight, bias, residual)) {
    return BatchNormFunction::apply(input, weight, bias, residual, options);
  }
  return std::get<0>(run_forward(input, weight, bias, residual, options, /*saves=*/false));
}

// Native has no derivative for the running statistics and says so; its message is as good as ours.
bool goes_to_native(const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                    const OptionalTensor& weight, const OptionalTensor& bias) {
  return use_native(Op::kBatchNorm, input, running_mean, running_var, weight, bias) ||
         records_grad(running_mean, running_var);
}

Tensor batch_norm(const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                  const OptionalTensor& weight, const OptionalTensor& bias, bool training, double momentum,
                  double eps) {
  if (goes_to_native(input, running_mean, running_var, weight, bias)) {
    return at::batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps,
                          at::globalContext().userEnabledCuDNN());
  }
  check_batch_norm(input, weight, bias, running_mean, running_var, training);
  return batch_norm_with(input, weight, bias, {}, {running_mean, running_var, training, momentum, eps, "none"});
}

Tensor batch_norm_act(const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                      const OptionalTensor& weight, const OptionalTensor& bias, bool training, double momentum,
                      double eps, c10::string_view activation_name, const OptionalTensor& residual) {
  const Activation activation = activation_from_name(activation_name);
  const OptionalTensor added = broadcast_residual(input, residual);
  const bool native =
      goes_to_native(input, running_mean, running_var, weight, bias) || use_native(Op::kBatchNorm, input, residual);
  if (native || !is_like(input, added)) {
    Tensor y = batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps);
    if (is_defined(residual)) y = at::add(y, *residual);
    return native_activation(y, activation);
  }
  check_batch_norm(input, weight, bias, running_mean, running_var, training);
  return batch_norm_with(input, weight, bias, added,
                         {running_mean, running_var, training, momentum, eps, std::string(activation_name)});
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

// dropout's gradient: dx = dy * keep / (1 - p), with the mask made again from the seed. Only the seed is saved.
#include "ops/dropout.h"

#include <ATen/ops/dropout.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>

#include "autograd/native_backward.h"
#include "ops/delegate.h"

namespace tilewright {
namespace {

variable_list dropout_gradients(AutogradContext* ctx, const variable_list& grad_outputs) {
  const Tensor seed = ctx->get_saved_variables()[0];
  const double p = ctx->saved_data["p"].toDouble();
  const Tensor& grad = grad_outputs[0];
  const bool higher_order = at::GradMode::is_enabled();
  return {higher_order ? differentiable_dropout_backward(grad, seed, p) : dropout_backward(grad, seed, p), Tensor()};
}

class DropoutFunction : public torch::autograd::Function<DropoutFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, double p) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor seed = dropout_seed(input);
    ctx->save_for_backward({seed});
    ctx->saved_data["p"] = p;
    return dropout_forward(input, seed, p);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return dropout_gradients(ctx, grad_outputs);
  }
};

class InplaceDropoutFunction : public torch::autograd::Function<InplaceDropoutFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, Tensor input, double p) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor seed = dropout_seed(input);
    ctx->save_for_backward({seed});
    ctx->saved_data["p"] = p;
    dropout_forward_(input, seed, p);
    torch::autograd::increment_version(input);
    ctx->mark_dirty({input});
    return input;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return dropout_gradients(ctx, grad_outputs);
  }
};

bool keeps_everything(const Tensor& input, double p, bool train) { return p == 0 || !train || input.sym_numel() == 0; }

Tensor dropout(const Tensor& input, double p, bool train) {
  if (use_native(input)) return at::dropout(input, p, train);
  check_dropout_probability(p);
  if (keeps_everything(input, p, train)) return input;
  if (p == 1) return at::mul(input, at::zeros({}, input.options()));
  if (records_grad(input)) return DropoutFunction::apply(input, p);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return dropout_forward(input, dropout_seed(input), p);
}

Tensor& dropout_(Tensor& input, double p, bool train) {
  if (use_native(input)) return at::dropout_(input, p, train);
  check_dropout_probability(p);
  if (keeps_everything(input, p, train)) return input;
  if (p == 1) return input.mul_(at::zeros({}, input.options()));
  torch::autograd::check_inplace(input, at::GradMode::is_enabled() && input.requires_grad());
  if (records_grad(input)) {
    InplaceDropoutFunction::apply(input, p);
    return input;
  }
  {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    dropout_forward_(input, dropout_seed(input), p);
  }
  torch::autograd::increment_version(input);
  return input;
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CompositeImplicitAutograd, m) {
  m.impl("dropout", tilewright::dropout);
  m.impl("dropout_", tilewright::dropout_);
}
TORCH_LIBRARY_IMPL(tilewright, FuncTorchBatched, m) {
  m.impl("dropout", tilewright::dropout);
  m.impl("dropout_", tilewright::dropout_);
}

// dropout's gradient: dx = dy * keep / (1 - p). Saved are the seed, from which the mask can be made again, and for
// large contiguous inputs the mask as bits, an eighth of a byte an element, because reading them is faster than Philox.
#include "ops/dropout.h"

#include <ATen/ops/dropout.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>

#include "autograd/native_backward.h"
#include "ops/delegate.h"

namespace tilewright {
namespace {

// Below so many elements, the mask is made again sooner than a tensor for its bits is allocated.
constexpr int64_t kWorthKeeping = 8192;

// On a GPU the rounds of Philox hide behind the memory traffic, and bits would only add to it.
// Of symbolic sizes nothing is asked here: a graph traced for all of them makes the mask again.
bool keeps_bits(const Tensor& input) {
  if (input.is_cuda()) return false;
  const auto numel = input.sym_numel().maybe_as_int();
  return numel.has_value() && *numel >= kWorthKeeping && input.is_contiguous();
}

variable_list dropout_gradients(AutogradContext* ctx, const variable_list& grad_outputs) {
  const auto saved = ctx->get_saved_variables();
  const Tensor &seed = saved[0], &keep_bits = saved[1];
  const double p = ctx->saved_data["p"].toDouble();
  const Tensor& grad = grad_outputs[0];
  if (wants_differentiable(grad_outputs)) return {differentiable_dropout_backward(grad, seed, p), Tensor()};
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return {dropout_backward(grad, seed, p, keep_bits), Tensor()};
}

class DropoutFunction : public torch::autograd::Function<DropoutFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, double p) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor seed = dropout_seed(input);
    ctx->saved_data["p"] = p;
    if (!keeps_bits(input)) {
      ctx->save_for_backward({seed, Tensor()});
      return dropout_forward(input, seed, p);
    }
    auto [output, keep_bits] = dropout_forward_keeping(input, seed, p);
    ctx->save_for_backward({seed, keep_bits});
    return output;
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
    ctx->save_for_backward({seed, Tensor()});
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
  if (use_native(Op::kDropout, input)) return at::dropout(input, p, train);
  check_dropout_probability(p);
  if (keeps_everything(input, p, train)) return input;
  if (p == 1) return at::mul(input, at::zeros({}, input.options()));
  if (records_grad(input)) return DropoutFunction::apply(input, p);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return dropout_forward(input, dropout_seed(input), p);
}

Tensor& dropout_(Tensor& input, double p, bool train) {
  if (use_native(Op::kDropout, input)) return at::dropout_(input, p, train);
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

// dropout_add's gradient: dresidual = dy, dinput = dy * keep / (1 - p), dbias = the sum of dinput over rows.
#include "ops/dropout_add.h"

#include <ATen/ops/add.h>
#include <ATen/ops/dropout.h>

#include "autograd/native_backward.h"
#include "ops/delegate.h"
#include "ops/dropout.h"

namespace tilewright {
namespace {

class DropoutAddFunction : public torch::autograd::Function<DropoutAddFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& residual, const OptionalTensor& bias,
                        double p) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor seed = dropout_seed(input);
    ctx->save_for_backward({seed});
    ctx->saved_data["p"] = p;
    ctx->saved_data["has_bias"] = is_defined(bias);
    return dropout_add_forward(input, residual, bias, seed, p);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const Tensor seed = ctx->get_saved_variables()[0];
    const double p = ctx->saved_data["p"].toDouble();
    const auto needs = inputs_needing_grad(ctx, {true, true, ctx->saved_data["has_bias"].toBool()});
    const Tensor& grad = grad_outputs[0];
    Tensor grad_input, grad_bias;
    if (wants_differentiable(grad_outputs)) {
      if (needs[0] || needs[2]) grad_input = differentiable_dropout_backward(grad, seed, p);
      if (needs[2]) grad_bias = grad_input.sum_to_size_symint({grad.sym_size(-1)});
    } else if (needs[2]) {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      std::tie(grad_input, grad_bias) = dropout_add_backward(grad, seed, p, {needs[0], true});
    } else if (needs[0]) {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      grad_input = dropout_backward(grad, seed, p);
    }
    return {grad_input, needs[1] ? grad : Tensor(), grad_bias, Tensor()};
  }
};

bool fits_fused(const Tensor& input, const Tensor& residual, const OptionalTensor& bias) {
  if (input.sym_sizes() != residual.sym_sizes() || input.scalar_type() != residual.scalar_type()) return false;
  if (input.device() != residual.device() || input.sym_numel() == 0) return false;
  if (!is_defined(bias)) return true;
  return bias->dim() == 1 && input.dim() >= 1 && bias->sym_size(0) == input.sym_size(-1) &&
         bias->scalar_type() == input.scalar_type() && bias->device() == input.device();
}

Tensor dropout_add(const Tensor& input, const Tensor& residual, double p, bool train, const OptionalTensor& bias) {
  check_dropout_probability(p);
  const bool native = use_native(Op::kDropoutAdd, input, residual, bias);
  if (native || !draws_mask(p, train) || !fits_fused(input, residual, bias)) {
    static const auto dropout_op = find_op<Tensor(const Tensor&, double, bool)>("tilewright::dropout");
    const Tensor x = is_defined(bias) ? at::add(input, *bias) : input;
    return at::add(residual, native ? at::dropout(x, p, train) : dropout_op.call(x, p, train));
  }
  if (records_grad(input, residual, bias)) return DropoutAddFunction::apply(input, residual, bias, p);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return dropout_add_forward(input, residual, bias, dropout_seed(input), p);
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CompositeImplicitAutograd, m) { m.impl("dropout_add", tilewright::dropout_add); }
TORCH_LIBRARY_IMPL(tilewright, FuncTorchBatched, m) { m.impl("dropout_add", tilewright::dropout_add); }

// dropout_add_layer_norm's gradient. With dz the layer norm's input gradient (autograd/layer_norm.cpp) plus the
// gradient that arrives at sum itself:  dresidual = dz,  dinput = dz * keep / (1 - p).
#include "ops/dropout_add_layer_norm.h"

#include <ATen/ops/add.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/layer_norm.h>

#include "autograd/autocast.h"
#include "autograd/native_backward.h"
#include "ops/delegate.h"
#include "ops/dropout.h"

namespace tilewright {
namespace {

struct InputGrads {
  Tensor input, residual;
};

// What dz means for input and residual, by ops that autograd differentiates where grad mode is on.
InputGrads split(const Tensor& dz, const Tensor& seed, double p, const std::vector<bool>& needs) {
  Tensor grad_input;
  if (needs[0] && !seed.defined()) grad_input = dz;
  if (needs[0] && seed.defined()) {
    grad_input =
        wants_differentiable({dz}) ? differentiable_dropout_backward(dz, seed, p) : dropout_backward(dz, seed, p);
  }
  return {grad_input, needs[1] ? dz : Tensor()};
}

// sum is an output even where the caller does not ask for it: saved as one, it connects gradients of gradients to input
// and residual, and neither of the two has to be saved.
class DropoutAddLayerNormFunction : public torch::autograd::Function<DropoutAddLayerNormFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& residual,
                               c10::SymIntArrayRef normalized_shape, const OptionalTensor& weight,
                               const OptionalTensor& bias, double eps, double p, bool train) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const OptionalTensor seed = draws_mask(p, train) ? OptionalTensor(dropout_seed(input)) : std::nullopt;
    auto [output, sum, mean, rstd] = dropout_add_layer_norm_forward(input, residual, normalized_shape, weight, bias,
                                                                    eps, seed, p, /*keep_sum=*/true);
    ctx->set_materialize_grads(false);
    if (!input.requires_grad() && !residual.requires_grad()) ctx->mark_non_differentiable({sum});
    ctx->save_for_backward(
        {sum, value_or_undefined(weight), value_or_undefined(bias), mean, rstd, value_or_undefined(seed)});
    ctx->saved_data["normalized_shape"] = normalized_shape.vec();
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["p"] = p;
    return {output, sum};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &sum = saved[0], &weight = saved[1], &bias = saved[2], &mean = saved[3], &rstd = saved[4],
                 &seed = saved[5];
    const auto shape = ctx->saved_data["normalized_shape"].toSymIntVector();
    const double p = ctx->saved_data["p"].toDouble();
    const auto needs = inputs_needing_grad(ctx, {true, true, weight.defined(), bias.defined()});
    const Tensor &grad_output = grad_outputs[0], &grad_sum = grad_outputs[1];
    const auto result = [](const InputGrads& grads, const Tensor& grad_weight, const Tensor& grad_bias) {
      return variable_list{grads.input, grads.residual, Tensor(), grad_weight, grad_bias, Tensor(), Tensor(), Tensor()};
    };
    if (!grad_output.defined()) {
      if (!grad_sum.defined()) return result({}, Tensor(), Tensor());
      return result(split(grad_sum, seed, p, needs), Tensor(), Tensor());
    }
    const bool wants_dz = needs[0] || needs[1];
    if (wants_differentiable(grad_outputs)) {
      const double eps = ctx->saved_data["eps"].toDouble();
      const auto grads = native_backward({sum, weight, bias}, {wants_dz, needs[2], needs[3]}, {grad_output},
                                         [&](const variable_list& in) -> variable_list {
                                           return {at::layer_norm_symint(in[0], shape, in[1], in[2], eps)};
                                         });
      if (!wants_dz) return result({}, grads[1], grads[2]);
      const Tensor dz = grad_sum.defined() ? at::add(grads[0], grad_sum) : grads[0];
      return result(split(dz, seed, p, needs), grads[1], grads[2]);
    }
    const OptionalTensor seed_or_none = seed.defined() ? OptionalTensor(seed) : std::nullopt;
    const OptionalTensor grad_sum_or_none = grad_sum.defined() ? OptionalTensor(grad_sum) : std::nullopt;
    const std::array<bool, 4> mask = {seed.defined() && needs[0], seed.defined() ? needs[1] : wants_dz, needs[2],
                                      needs[3]};
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [grad_input, grad_residual, grad_weight, grad_bias] = dropout_add_layer_norm_backward(
        grad_output, grad_sum_or_none, sum, shape, mean, rstd, weight, seed_or_none, p, mask);
    if (!seed.defined()) return result(split(grad_residual, seed, p, needs), grad_weight, grad_bias);
    return result({grad_input, grad_residual}, grad_weight, grad_bias);
  }
};

bool fits_fused(const Tensor& input, const Tensor& residual, double p, bool train) {
  const bool drops_everything = train && p == 1;
  return !drops_everything && input.sym_sizes() == residual.sym_sizes() &&
         input.scalar_type() == residual.scalar_type() && input.device() == residual.device();
}

// The separate ops: ours, or native's where the tensors are native's.
std::tuple<Tensor, Tensor> unfused(const Tensor& input, const Tensor& residual, c10::SymIntArrayRef normalized_shape,
                                   const OptionalTensor& weight, const OptionalTensor& bias, double eps, double p,
                                   bool train, bool native) {
  static const auto dropout_op = find_op<Tensor(const Tensor&, double, bool)>("tilewright::dropout");
  static const auto layer_norm_op =
      find_op<Tensor(const Tensor&, c10::SymIntArrayRef, const OptionalTensor&, const OptionalTensor&, double)>(
          "tilewright::layer_norm");
  const Tensor sum = at::add(residual, native ? at::dropout(input, p, train) : dropout_op.call(input, p, train));
  const Tensor output = native ? at::layer_norm_symint(sum, normalized_shape, weight, bias, eps)
                               : layer_norm_op.call(sum, normalized_shape, weight, bias, eps);
  return {output, sum};
}

std::tuple<Tensor, Tensor> output_and_sum(const Tensor& input, const Tensor& residual,
                                          c10::SymIntArrayRef normalized_shape, const OptionalTensor& weight,
                                          const OptionalTensor& bias, double eps, double p, bool train, bool keep_sum) {
  check_dropout_probability(p);
  const bool native = use_native(Op::kDropoutAddLayerNorm, input, residual, weight, bias);
  if (native || !fits_fused(input, residual, p, train)) {
    return unfused(input, residual, normalized_shape, weight, bias, eps, p, train, native);
  }
  if (records_grad(input, residual, weight, bias)) {
    const auto outputs =
        DropoutAddLayerNormFunction::apply(input, residual, normalized_shape, weight, bias, eps, p, train);
    return {outputs[0], outputs[1]};
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OptionalTensor seed = draws_mask(p, train) ? OptionalTensor(dropout_seed(input)) : std::nullopt;
  auto [output, sum, mean, rstd] =
      dropout_add_layer_norm_forward(input, residual, normalized_shape, weight, bias, eps, seed, p, keep_sum);
  return {output, sum};
}

Tensor dropout_add_layer_norm(const Tensor& input, const Tensor& residual, c10::SymIntArrayRef normalized_shape,
                              const OptionalTensor& weight, const OptionalTensor& bias, double eps, double p,
                              bool train) {
  return std::get<0>(output_and_sum(input, residual, normalized_shape, weight, bias, eps, p, train, false));
}

std::tuple<Tensor, Tensor> dropout_add_layer_norm_prenorm(const Tensor& input, const Tensor& residual,
                                                          c10::SymIntArrayRef normalized_shape,
                                                          const OptionalTensor& weight, const OptionalTensor& bias,
                                                          double eps, double p, bool train) {
  return output_and_sum(input, residual, normalized_shape, weight, bias, eps, p, train, true);
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CompositeImplicitAutograd, m) {
  m.impl("dropout_add_layer_norm", tilewright::dropout_add_layer_norm);
  m.impl("dropout_add_layer_norm_prenorm", tilewright::dropout_add_layer_norm_prenorm);
}
TORCH_LIBRARY_IMPL(tilewright, FuncTorchBatched, m) {
  m.impl("dropout_add_layer_norm", tilewright::dropout_add_layer_norm);
  m.impl("dropout_add_layer_norm_prenorm", tilewright::dropout_add_layer_norm_prenorm);
}
// As layer_norm under CUDA's autocast.
TORCH_LIBRARY_IMPL(tilewright, AutocastCUDA, m) {
  using tilewright::Precision, tilewright::register_precision;
  register_precision<"dropout_add_layer_norm", at::kCUDA, Precision::kFloat>(m, tilewright::dropout_add_layer_norm);
  register_precision<"dropout_add_layer_norm_prenorm", at::kCUDA, Precision::kFloat>(
      m, tilewright::dropout_add_layer_norm_prenorm);
}

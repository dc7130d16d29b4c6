// layer_norm's gradient. With xhat = (x - mean) * rstd and g = dy * weight, per row of n columns:
//   dx = rstd * (g - (sum(g) + xhat * sum(g * xhat)) / n),  dweight = sum_rows(dy * xhat),  dbias = sum_rows(dy)
#include "ops/layer_norm.h"

#include <ATen/ops/layer_norm.h>

#include "autograd/autocast.h"
#include "autograd/native_backward.h"
#include "ops/delegate.h"

namespace tilewright {
namespace {

class LayerNormFunction : public torch::autograd::Function<LayerNormFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                        const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, mean, rstd] = layer_norm_forward(input, normalized_shape, weight, bias, eps);
    ctx->save_for_backward({input, value_or_undefined(weight), value_or_undefined(bias), mean, rstd});
    ctx->saved_data["rank"] = static_cast<int64_t>(normalized_shape.size());
    ctx->saved_data["eps"] = eps;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &bias = saved[2], &mean = saved[3], &rstd = saved[4];
    const auto shape = input.sym_sizes().slice(input.dim() - ctx->saved_data["rank"].toInt());
    const auto needs = inputs_needing_grad(ctx, {true, weight.defined(), bias.defined()});
    if (wants_differentiable(grad_outputs)) {
      const double eps = ctx->saved_data["eps"].toDouble();
      auto grads =
          native_backward({input, weight, bias}, needs, grad_outputs, [&](const variable_list& in) -> variable_list {
            return {at::layer_norm_symint(in[0], shape, in[1], in[2], eps)};
          });
      return {grads[0], Tensor(), grads[1], grads[2], Tensor()};
    }
    at::AutoDispatchBelowADInplaceOrView
        below_autograd;  // above it the op would be boxed for autograd's fallback: 1 us
    auto [grad_input, grad_weight, grad_bias] =
        layer_norm_backward(grad_outputs[0], input, shape, mean, rstd, weight, {needs[0], needs[1], needs[2]});
    return {grad_input, Tensor(), grad_weight, grad_bias, Tensor()};
  }
};

Tensor layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const OptionalTensor& weight,
                  const OptionalTensor& bias, double eps) {
  if (use_native(Op::kLayerNorm, input, weight, bias))
    return at::layer_norm_symint(input, normalized_shape, weight, bias, eps);
  if (records_grad(input, weight, bias)) return LayerNormFunction::apply(input, normalized_shape, weight, bias, eps);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(layer_norm_forward(input, normalized_shape, weight, bias, eps));
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CompositeImplicitAutograd, m) { m.impl("layer_norm", tilewright::layer_norm); }
TORCH_LIBRARY_IMPL(tilewright, FuncTorchBatched, m) { m.impl("layer_norm", tilewright::layer_norm); }
// Native's list of what CUDA's autocast computes in float32 has layer_norm; the CPU's has not.
TORCH_LIBRARY_IMPL(tilewright, AutocastCUDA, m) {
  tilewright::register_precision<"layer_norm", at::kCUDA, tilewright::Precision::kFloat>(m, tilewright::layer_norm);
}

// Gradients of linear and linear_act. With z = x W^T + b, y = act(z), g = dy * act'(z):
//   dx = g W,  dW = g^T x,  db = sum of g's rows.
// linear saves x only for dW and W only for dx. linear_act also saves z (relu, relu6: y, which autograd keeps anyway),
// and x, W, b whole, because gradients of gradients compute z again.
#include "ops/linear.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

#include "autograd/autocast.h"
#include "autograd/native_backward.h"
#include "ops/delegate.h"
#include "ops/matmul.h"

namespace tilewright {
namespace {

Tensor as_matrix(const Tensor& tensor) {
  return tensor.dim() == 2 ? tensor : tensor.reshape_symint({-1, tensor.sym_size(-1)});
}

class LinearFunction : public torch::autograd::Function<LinearFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({needs_grad(weight) ? input : Tensor(), needs_grad(input) ? weight : Tensor()});
    // Native's gradients of matrices that are not row-major: a column-major input's is, and so is any other weight's.
    const bool turns_input = input.dim() == 2 && input.sym_stride(0) == 1 && input.sym_stride(1) == input.sym_size(0);
    const bool turns_weight = weight.sym_stride(1) != 1 || weight.sym_stride(0) != weight.sym_size(1);
    ctx->saved_data["flags"] = static_cast<int64_t>(is_defined(bias)) | static_cast<int64_t>(turns_input) << 1 |
                               static_cast<int64_t>(turns_weight) << 2;
    return std::get<0>(tilewright::linear_forward(input, weight, bias, "none", false));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &grad = grad_outputs[0];
    const int64_t flags = ctx->saved_data["flags"].toInt();
    const bool has_bias = flags & 1;
    const auto needs = inputs_needing_grad(ctx, {true, true, has_bias});
    if (!wants_differentiable(grad_outputs)) {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      const bool turns_input = needs[0] && (flags & 2), turns_weight = needs[1] && (flags & 4);
      auto [grad_input, grad_weight, grad_bias] = tilewright::linear_backward(
          grad, input, weight, {needs[0] && !turns_input, needs[1] && !turns_weight, needs[2]});
      if (turns_input) grad_input = tilewright::matmul_forward(weight.t(), grad.t()).t();
      if (turns_weight) grad_weight = tilewright::matmul_forward(as_matrix(input).t(), as_matrix(grad)).t();
      return {grad_input, grad_weight, grad_bias};
    }
    // What was not saved is not read either: linear is linear in each operand.
    const c10::SymInt in = input.defined() ? input.sym_size(-1) : weight.defined() ? weight.sym_size(1) : 1;
    auto input_shape = grad.sym_sizes().vec();
    const c10::SymInt out = input_shape.back();
    input_shape.back() = in;
    const Tensor x = input.defined() ? input : at::zeros_symint(input_shape, grad.options());
    const Tensor w = weight.defined() ? weight : at::zeros_symint({out, in}, grad.options());
    const Tensor b = has_bias ? at::zeros_symint({out}, grad.options()) : Tensor();
    return native_backward({x, w, b}, needs, grad_outputs,
                           [](const variable_list& in) -> variable_list { return {at::linear(in[0], in[1], in[2])}; });
  }
};

class LinearActFunction : public torch::autograd::Function<LinearActFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const std::string& activation) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, pre] = tilewright::linear_forward(input, weight, bias, activation, true);
    ctx->save_for_backward({input, weight, value_or_undefined(bias), pre.defined() ? pre : output});
    ctx->saved_data["activation"] = activation;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &bias = saved[2];
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    const auto needs = inputs_needing_grad(ctx, {true, true, bias.defined()});
    if (wants_differentiable(grad_outputs)) {
      const Activation kind = activation_from_name(activation);
      auto grads =
          native_backward({input, weight, bias}, needs, grad_outputs, [kind](const variable_list& in) -> variable_list {
            return {native_activation(at::linear(in[0], in[1], in[2]), kind)};
          });
      return {grads[0], grads[1], grads[2], Tensor()};
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor grad = tilewright::activation_backward(grad_outputs[0], saved[3], activation);
    auto [grad_input, grad_weight, grad_bias] =
        tilewright::linear_backward(grad, input, weight, {needs[0], needs[1], needs[2]});
    return {grad_input, grad_weight, grad_bias, Tensor()};
  }
};

// Native also takes a vector weight and a bias that broadcasts; those are rare and go its way.
bool has_common_shapes(const Tensor& weight, const OptionalTensor& bias) {
  return weight.dim() == 2 && (!is_defined(bias) || (bias->dim() == 1 && bias->sym_size(0) == weight.sym_size(0)));
}

Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  if (use_native(Op::kLinear, input, weight, bias)) return at::linear(input, weight, bias);
  const Tensor mixed = native_with_other_bias(input, bias, [&] { return at::linear(input, weight, bias); });
  if (mixed.defined()) return mixed;
  if (!has_common_shapes(weight, bias)) {
    static const auto matmul = find_op<Tensor(const Tensor&, const Tensor&)>("tilewright::matmul");
    if (weight.dim() == 1 && !is_defined(bias)) return matmul.call(input, weight);
    return at::linear(input, weight, bias);
  }
  if (records_grad(input, weight, bias)) return LinearFunction::apply(input, weight, bias);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(tilewright::linear_forward(input, weight, bias, "none", false));
}

Tensor linear_act(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, c10::string_view activation) {
  const Activation kind = activation_from_name(activation);
  if (kind == Activation::kNone) return tilewright::linear(input, weight, bias);
  if (use_native(Op::kLinear, input, weight, bias) || !has_common_shapes(weight, bias)) {
    return native_activation(tilewright::linear(input, weight, bias), kind);
  }
  if (records_grad(input, weight, bias)) {
    return LinearActFunction::apply(input, weight, bias, std::string(activation));
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(tilewright::linear_forward(input, weight, bias, activation, false));
}

void register_composite(torch::Library& m) {
  m.impl("linear", linear);
  m.impl("linear_act", linear_act);
}

template <at::DeviceType kDevice>
void register_autocast(torch::Library& m) {
  register_precision<"linear", kDevice>(m, linear);
  register_precision<"linear_act", kDevice>(m, linear_act);
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CompositeImplicitAutograd, m) { tilewright::register_composite(m); }
TORCH_LIBRARY_IMPL(tilewright, FuncTorchBatched, m) { tilewright::register_composite(m); }
TORCH_LIBRARY_IMPL(tilewright, AutocastCPU, m) { tilewright::register_autocast<at::kCPU>(m); }
TORCH_LIBRARY_IMPL(tilewright, AutocastCUDA, m) { tilewright::register_autocast<at::kCUDA>(m); }

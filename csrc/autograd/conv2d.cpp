// conv2d's gradient. With y = conv(x, w) + b + r and dz = dy where act(y) is the identity, dz = dy * [y > 0] for relu:
//   dx = dz convolved with w flipped (strides spread dz),  dw[f, c, i, j] = sum over n, y, x of dz * x,
//   db[f] = sum over n, y, x of dz,  dr = dz
#include "ops/conv2d.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/threshold_backward.h>

#include "autograd/native_backward.h"
#include "ops/delegate.h"

namespace tilewright {
namespace {

struct Conv2dOptions {
  c10::SymIntArrayRef stride, padding, dilation;
  const c10::SymInt& groups;
};

Tensor native_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Conv2dOptions& options) {
  return at::conv2d_symint(input, weight, bias, options.stride, options.padding, options.dilation, options.groups);
}

class Conv2dFunction : public torch::autograd::Function<Conv2dFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                        const c10::SymInt& groups, bool relu, const OptionalTensor& residual) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    Tensor output = conv2d_forward(input, weight, bias, stride, padding, dilation, groups, relu, residual);
    const bool has_residual = is_defined(residual);
    ctx->save_for_backward({input, weight, value_or_undefined(bias), relu ? output : Tensor()});
    ctx->saved_data["stride"] = stride.vec();
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["dilation"] = dilation.vec();
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["has_residual"] = has_residual;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &bias = saved[2], &output = saved[3];
    const auto stride = ctx->saved_data["stride"].toSymIntVector(),
               padding = ctx->saved_data["padding"].toSymIntVector(),
               dilation = ctx->saved_data["dilation"].toSymIntVector();
    const c10::SymInt groups = ctx->saved_data["groups"].toSymInt();
    const bool has_residual = ctx->saved_data["has_residual"].toBool();
    const auto needs = inputs_needing_grad(ctx, {true, true, bias.defined(), has_residual});
    variable_list result(9);
    if (!grad_outputs[0].defined()) return result;
    // Differentiable in itself: the gradient of relu needs no replay.
    const Tensor grad = output.defined() ? at::threshold_backward(grad_outputs[0], output, 0) : grad_outputs[0];
    if (needs[3]) result[8] = grad;
    if (at::GradMode::is_enabled()) {
      const Conv2dOptions options{stride, padding, dilation, groups};
      auto grads = native_backward(
          {input, weight, bias}, {needs[0], needs[1], needs[2]}, {grad},
          [&](const variable_list& in) -> variable_list { return {native_conv2d(in[0], in[1], in[2], options)}; });
      for (size_t i = 0; i < 3; ++i) result[i] = grads[i];
    } else if (needs[0] || needs[1] || needs[2]) {
      std::tie(result[0], result[1], result[2]) =
          conv2d_backward(grad, input, weight, stride, padding, dilation, groups, {needs[0], needs[1], needs[2]});
    }
    return result;
  }
};

// The op on our kernels: relu and residual fused.
Tensor run_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Conv2dOptions& options,
                  bool relu, const OptionalTensor& residual) {
  if (input.dim() == 3) {
    OptionalTensor batched_residual;
    if (is_defined(residual)) batched_residual = residual->unsqueeze(0);
    return run_conv2d(input.unsqueeze(0), weight, bias, options, relu, batched_residual).squeeze(0);
  }
  if (records_grad(input, weight, bias, residual)) {
    return Conv2dFunction::apply(input, weight, bias, options.stride, options.padding, options.dilation, options.groups,
                                 relu, residual);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return conv2d_forward(input, weight, bias, options.stride, options.padding, options.dilation, options.groups, relu,
                        residual);
}

Tensor conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, c10::SymIntArrayRef stride,
              c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups) {
  const Conv2dOptions options{stride, padding, dilation, groups};
  if (use_native(input, weight, bias)) return native_conv2d(input, weight, bias, options);
  return run_conv2d(input, weight, bias, options, /*relu=*/false, /*residual=*/{});
}

Tensor activate(const Tensor& value, c10::string_view activation) {
  if (activation == "none") return value;
  if (activation == "relu") return at::relu(value);
  if (activation == "gelu") return at::gelu(value);
  if (activation == "gelu_tanh") return at::gelu(value, "tanh");
  TORCH_CHECK_VALUE(activation == "silu", "conv2d_act: activation must be none, relu, gelu, gelu_tanh or silu, got ",
                    activation);
  return at::silu(value);
}

Tensor conv2d_act(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, c10::SymIntArrayRef stride,
                  c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                  c10::string_view activation, const OptionalTensor& residual) {
  const Conv2dOptions options{stride, padding, dilation, groups};
  if (use_native(input, weight, bias, residual)) {
    const Tensor sum = native_conv2d(input, weight, bias, options);
    return activate(is_defined(residual) ? at::add(sum, *residual) : sum, activation);
  }
  const bool fused = activation == "relu";
  const Tensor sum = run_conv2d(input, weight, bias, options, fused, residual);
  return fused ? sum : activate(sum, activation);
}

// --- autocast: native runs conv2d in the lower precision ---

template <c10::DispatchKey kKey, c10::DeviceType kDevice>
struct Autocast {
  static OptionalTensor cast(const OptionalTensor& tensor) {
    if (!is_defined(tensor)) return tensor;
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(kDevice), *tensor, kDevice);
  }
  static Tensor cast(const Tensor& tensor) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(kDevice), tensor, kDevice);
  }
  static Tensor conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                       c10::SymInt groups) {
    c10::impl::ExcludeDispatchKeyGuard no_autocast(kKey);
    static const auto op = find_op<decltype(tilewright::conv2d)>("tilewright::conv2d");
    return op.call(cast(input), cast(weight), cast(bias), stride, padding, dilation, std::move(groups));
  }
  static Tensor conv2d_act(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                           c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                           c10::SymInt groups, c10::string_view activation, const OptionalTensor& residual) {
    c10::impl::ExcludeDispatchKeyGuard no_autocast(kKey);
    static const auto op = find_op<decltype(tilewright::conv2d_act)>("tilewright::conv2d_act");
    return op.call(cast(input), cast(weight), cast(bias), stride, padding, dilation, std::move(groups), activation,
                   cast(residual));
  }
};
using AutocastOnCPU = Autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>;
using AutocastOnCUDA = Autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>;

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CompositeImplicitAutograd, m) {
  m.impl("conv2d", tilewright::conv2d);
  m.impl("conv2d_act", tilewright::conv2d_act);
}
TORCH_LIBRARY_IMPL(tilewright, FuncTorchBatched, m) {
  m.impl("conv2d", tilewright::conv2d);
  m.impl("conv2d_act", tilewright::conv2d_act);
}
TORCH_LIBRARY_IMPL(tilewright, AutocastCPU, m) {
  m.impl("conv2d", tilewright::AutocastOnCPU::conv2d);
  m.impl("conv2d_act", tilewright::AutocastOnCPU::conv2d_act);
}
TORCH_LIBRARY_IMPL(tilewright, AutocastCUDA, m) {
  m.impl("conv2d", tilewright::AutocastOnCUDA::conv2d);
  m.impl("conv2d_act", tilewright::AutocastOnCUDA::conv2d_act);
}

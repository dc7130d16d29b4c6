// conv2d's gradient. With y = conv(x, w) + b + r and dz = dy where act(y) is the identity, dz = dy * [y > 0] for relu,
// dz = dy * [0 < y < 6] for relu6:
//   dx = dz convolved with w flipped (strides spread dz),  dw[f, c, i, j] = sum over n, y, x of dz * x,
//   db[f] = sum over n, y, x of dz,  dr = dz
// For the other activations the fused kernel gives z and y = act(z) at once and two Functions, one behind the other,
// hold what native's separate ops would hold: x and w, and z.
#include "ops/conv2d.h"

#include <ATen/ops/add.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/zeros.h>

#include "autograd/autocast.h"
#include "autograd/native_backward.h"
#include "ops/delegate.h"
#include "ops/linear.h"

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

// A result that was computed before its Function: not one of the Function's inputs.
struct Computed {
  Tensor value;
};

class Conv2dFunction : public torch::autograd::Function<Conv2dFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                        const c10::SymInt& groups, c10::string_view activation, const OptionalTensor& residual,
                        const Computed& computed) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor output =
        computed.value.defined()
            ? computed.value
            : std::get<0>(conv2d_forward(input, weight, bias, stride, padding, dilation, groups, activation,
                                         /*saves=*/true, residual));
    // No gradient depends on the bias, so it is not saved and may be changed.
    const Activation kind = activation_from_name(activation);
    ctx->save_for_backward({input, weight, gradient_reads_output(kind) ? output : Tensor()});
    ctx->saved_data["stride"] = stride.vec();
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["dilation"] = dilation.vec();
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["flags"] = static_cast<int64_t>(is_defined(bias)) |
                               static_cast<int64_t>(is_defined(residual)) << 1 | static_cast<int64_t>(kind) << 2;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &output = saved[2];
    const auto stride = ctx->saved_data["stride"].toSymIntVector(),
               padding = ctx->saved_data["padding"].toSymIntVector(),
               dilation = ctx->saved_data["dilation"].toSymIntVector();
    const c10::SymInt groups = ctx->saved_data["groups"].toSymInt();
    const int64_t flags = ctx->saved_data["flags"].toInt();
    const bool has_bias = flags & 1;
    const auto needs = inputs_needing_grad(ctx, {true, true, has_bias, (flags & 2) != 0});
    variable_list result(10);
    if (!grad_outputs[0].defined()) return result;
    // Differentiable in itself: the gradients of relu and relu6 need no replay.
    const Tensor grad = output.defined()
                            ? native_gradient_by_output(grad_outputs[0], output, static_cast<Activation>(flags >> 2))
                            : grad_outputs[0];
    if (needs[3]) result[8] = grad;
    if (wants_differentiable(grad_outputs)) {
      const Conv2dOptions options{stride, padding, dilation, groups};
      const Tensor bias = has_bias ? at::zeros_symint({weight.sym_size(0)}, weight.options()) : Tensor();
      auto grads = native_backward(
          {input, weight, bias}, {needs[0], needs[1], needs[2]}, {grad},
          [&](const variable_list& in) -> variable_list { return {native_conv2d(in[0], in[1], in[2], options)}; });
      for (size_t i = 0; i < 3; ++i) result[i] = grads[i];
    } else if (needs[0] || needs[1] || needs[2]) {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      std::tie(result[0], result[1], result[2]) =
          conv2d_backward(grad, input, weight, stride, padding, dilation, groups, {needs[0], needs[1], needs[2]});
    }
    return result;
  }
};

class ActivationFunction : public torch::autograd::Function<ActivationFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& pre, const std::string& activation,
                        const Computed& computed) {
    ctx->save_for_backward({pre});
    ctx->saved_data["activation"] = activation;
    return computed.value;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const Tensor pre = ctx->get_saved_variables()[0];
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    if (!wants_differentiable(grad_outputs)) {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      return {activation_backward(grad_outputs[0], pre, activation), Tensor(), Tensor()};
    }
    const auto grads = native_backward({pre}, {true}, grad_outputs, [&](const variable_list& in) -> variable_list {
      return {native_activation(in[0], activation_from_name(activation))};
    });
    return {grads[0], Tensor(), Tensor()};
  }
};

// The op on our kernels, for batched input and a residual of the output's shape.
Tensor run_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Conv2dOptions& options,
                  c10::string_view activation, const OptionalTensor& residual) {
  const bool differentiates = records_grad(input, weight, bias, residual);
  const bool by_output = !gradient_reads_input(activation_from_name(activation));
  const auto apply = [&](const Tensor& computed) {
    return Conv2dFunction::apply(input, weight, bias, options.stride, options.padding, options.dilation, options.groups,
                                 by_output ? activation : "none", residual, Computed{computed});
  };
  if (differentiates && by_output) return apply(Tensor());
  const auto [output, pre] = [&] {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return conv2d_forward(input, weight, bias, options.stride, options.padding, options.dilation, options.groups,
                          activation, differentiates, residual);
  }();
  return differentiates ? ActivationFunction::apply(apply(pre), std::string(activation), Computed{output}) : output;
}

// Unbatched input is a batch of one.
Tensor run_any_rank(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Conv2dOptions& options,
                    c10::string_view activation, const OptionalTensor& residual) {
  if (input.dim() != 3) return run_conv2d(input, weight, bias, options, activation, residual);
  const bool lacks_batch = is_defined(residual) && residual->dim() == 3;
  return run_conv2d(input.unsqueeze(0), weight, bias, options, activation,
                    lacks_batch ? OptionalTensor(residual->unsqueeze(0)) : residual)
      .squeeze(0);
}

// Some of native's ways take a bias of another dtype and others refuse it.
bool leaves_to_native(const Tensor& input, const OptionalTensor& bias) {
  return input.defined() && is_defined(bias) && bias->scalar_type() != input.scalar_type();
}

// One value stands for both directions.
c10::SymInt value_of(c10::SymIntArrayRef values, int64_t direction) {
  return values.empty() ? c10::SymInt(1) : values[direction % values.size()];
}

bool exceeds_gpu_kernels(const Tensor& input, const Tensor& weight, const Conv2dOptions& options) {
  if (!input.is_cuda() || input.dim() < 3 || weight.dim() != 4) return false;
  c10::SymInt plane = 1, largest = input.sym_size(input.dim() - 3).max(weight.sym_size(0));
  for (int64_t d = 0; d < 2; ++d) {
    const c10::SymInt padded = input.sym_size(input.dim() - 2 + d) + value_of(options.padding, d) * 2;
    largest = largest.max(padded).max(value_of(options.stride, d));
    plane = plane * padded;
  }
  if (!TORCH_GUARD_OR_FALSE(largest.max(plane).sym_gt(kLargestOnGpu))) return false;
  TORCH_WARN_ONCE("conv2d: channels, strides and padded images beyond ", kLargestOnGpu,
                  " are native PyTorch's on a GPU, got input of shape ", input.sym_sizes(), " and weight of shape ",
                  weight.sym_sizes());
  return true;
}

Tensor conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, c10::SymIntArrayRef stride,
              c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups) {
  const Conv2dOptions options{stride, padding, dilation, groups};
  if (use_native(Op::kConv2d, input, weight, bias) || leaves_to_native(input, bias) ||
      exceeds_gpu_kernels(input, weight, options)) {
    return native_conv2d(input, weight, bias, options);
  }
  return run_any_rank(input, weight, bias, options, "none", /*residual=*/{});
}

// The residual in the output's shape, where it broadcasts to it; else as it is: conv2d_forward says what is wrong.
Tensor broadcast_residual(const Tensor& residual, const Tensor& input, const Tensor& weight,
                          const Conv2dOptions& options) {
  if (weight.dim() != 4 || input.dim() < 3 || input.dim() > 4 || residual.dim() > input.dim()) return residual;
  c10::SymDimVector size{weight.sym_size(0)};
  if (input.dim() == 4) size.insert(size.begin(), input.sym_size(0));
  for (int64_t d = 0; d < 2; ++d) {
    const c10::SymInt step = value_of(options.stride, d),
                      reach = value_of(options.dilation, d) * (weight.sym_size(2 + d) - 1);
    if (step <= 0) return residual;
    size.push_back((input.sym_size(input.dim() - 2 + d) + value_of(options.padding, d) * 2 - reach - 1) / step + 1);
  }
  const auto own = residual.sym_sizes();
  if (own.equals(size)) return residual;
  for (size_t d = 0; d < own.size(); ++d) {
    if (own[d] != 1 && own[d] != size[size.size() - own.size() + d]) return residual;
  }
  return residual.expand_symint(size);
}

Tensor conv2d_act(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, c10::SymIntArrayRef stride,
                  c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                  c10::string_view activation, const OptionalTensor& residual) {
  const Conv2dOptions options{stride, padding, dilation, groups};
  const Activation kind = activation_from_name(activation);
  if (use_native(Op::kConv2d, input, weight, bias, residual) || leaves_to_native(input, bias) ||
      exceeds_gpu_kernels(input, weight, options)) {
    const Tensor sum = native_conv2d(input, weight, bias, options);
    return native_activation(is_defined(residual) ? at::add(sum, *residual) : sum, kind);
  }
  OptionalTensor added;
  if (is_defined(residual)) added = broadcast_residual(*residual, input, weight, options);
  return run_any_rank(input, weight, bias, options, activation, added);
}

void register_composite(torch::Library& m) {
  m.impl("conv2d", conv2d);
  m.impl("conv2d_act", conv2d_act);
}

template <at::DeviceType kDevice>
void register_autocast(torch::Library& m) {
  register_precision<"conv2d", kDevice>(m, conv2d);
  register_precision<"conv2d_act", kDevice>(m, conv2d_act);
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CompositeImplicitAutograd, m) { tilewright::register_composite(m); }
TORCH_LIBRARY_IMPL(tilewright, FuncTorchBatched, m) { tilewright::register_composite(m); }
TORCH_LIBRARY_IMPL(tilewright, AutocastCPU, m) { tilewright::register_autocast<at::kCPU>(m); }
TORCH_LIBRARY_IMPL(tilewright, AutocastCUDA, m) { tilewright::register_autocast<at::kCUDA>(m); }

// scaled_dot_product_attention's gradient. With P = softmax(scale * Q K^T + mask), keep = 0 or 1 / (1 - p) per element,
// O = (P keep) V and delta = rowsum(dO * O):
//   dV = (P keep)^T dO,  dS = P * (dO V^T keep - delta),  dQ = scale * dS K,  dK = scale * dS^T Q,  dmask = dS
// Saved: the inputs, the seed, O and the logsumexp; P is made anew.
#include "ops/attention.h"

#include <ATen/ops/_safe_softmax.h>
#include <ATen/ops/flatten.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>

#include "autograd/autocast.h"
#include "autograd/native_backward.h"
#include "ops/delegate.h"
#include "ops/dropout.h"

namespace tilewright {
namespace {

struct AttentionOptions {
  double dropout_p;
  bool is_causal;
  std::optional<double> scale;
};

// The op in aten's differentiable ops, with the mask bits of the seed: what gradients of gradients are taken of.
Tensor attention_by_formula(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& attn_mask,
                            const Tensor& seed, const AttentionOptions& options) {
  const auto dtype = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto all_heads = [&](const Tensor& tensor) {
    const Tensor wide = tensor.to(dtype);
    if (query.dim() < 3 || query.sym_size(-3) == tensor.sym_size(-3)) return wide;
    return at::repeat_interleave_symint(wide, query.sym_size(-3) / tensor.sym_size(-3), -3);
  };
  const c10::SymFloat scale = options.scale.has_value() ? c10::SymFloat(*options.scale)
                                                        : c10::SymFloat(1.0) / c10::SymFloat(query.sym_size(-1)).sqrt();
  Tensor logits = at::matmul(query.to(dtype), all_heads(key).transpose(-2, -1)) * scale;
  if (attn_mask.defined()) {
    logits = attn_mask.scalar_type() == at::kBool ? logits.masked_fill(attn_mask.logical_not(), -INFINITY)
                                                  : logits + attn_mask.to(dtype);
  }
  if (options.is_causal) {
    const Tensor visible =
        at::ones_symint({query.sym_size(-2), key.sym_size(-2)}, query.options().dtype(at::kBool)).tril();
    logits = logits.masked_fill(visible.logical_not(), -INFINITY);
  }
  Tensor probabilities = at::_safe_softmax(logits, -1);
  if (seed.defined()) {
    const double keep_scale = options.dropout_p < 1 ? 1 / (1 - options.dropout_p) : 0;
    probabilities = probabilities * dropout_mask(logits.detach(), seed, options.dropout_p).to(dtype).mul(keep_scale);
  }
  return at::matmul(probabilities, all_heads(value)).to(query.scalar_type());
}

class AttentionFunction : public torch::autograd::Function<AttentionFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& query, const Tensor& key, const Tensor& value,
                        const OptionalTensor& attn_mask, const OptionalTensor& seed, double dropout_p, bool is_causal,
                        std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, logsumexp] = attention_forward(query, key, value, attn_mask, seed, dropout_p, is_causal, scale);
    ctx->save_for_backward(
        {query, key, value, value_or_undefined(attn_mask), value_or_undefined(seed), output, logsumexp});
    ctx->saved_data["dropout_p"] = dropout_p;
    ctx->saved_data["is_causal"] = is_causal;
    ctx->saved_data["scale"] = scale;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &query = saved[0], &key = saved[1], &value = saved[2], &mask = saved[3], &seed = saved[4];
    const AttentionOptions options{ctx->saved_data["dropout_p"].toDouble(), ctx->saved_data["is_causal"].toBool(),
                                   ctx->saved_data["scale"].toOptional<double>()};
    const auto needs = inputs_needing_grad(ctx, {true, true, true, mask.defined()});
    variable_list grads;
    if (wants_differentiable(grad_outputs)) {
      grads = native_backward({query, key, value, mask}, needs, grad_outputs,
                              [&](const variable_list& in) -> variable_list {
                                return {attention_by_formula(in[0], in[1], in[2], in[3], seed, options)};
                              });
    } else {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      auto [grad_query, grad_key, grad_value, grad_mask] =
          attention_backward(grad_outputs[0], query, key, value, saved[5], saved[6], mask, seed, options.dropout_p,
                             options.is_causal, options.scale, {needs[0], needs[1], needs[2], needs[3]});
      grads = {grad_query, grad_key, grad_value, grad_mask};
    }
    return {grads[0], grads[1], grads[2], grads[3], Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// Contiguous, with the strides that a new tensor has: contiguous() leaves those of dimensions of size 1 as they are.
Tensor as_new(const Tensor& output) {
  Tensor result = output.contiguous();
  c10::SymInt stride = 1;
  for (int64_t d = result.dim() - 1; d >= 0; --d) {
    if (result.sym_size(d) == 1 && result.sym_stride(d) != stride)
      return at::flatten(result).view_symint(result.sym_sizes());
    stride *= result.sym_size(d);
  }
  return result;
}

// The GPU kernels keep a row of the output in registers, which ends at this head size.
constexpr int64_t kGpuHeadSize = 256;

bool is_too_wide_for_gpu(const Tensor& query, const Tensor& value) {
  if (!query.is_cuda() || query.dim() < 2 || value.dim() < 2) return false;
  if (query.sym_size(-1) <= kGpuHeadSize && value.sym_size(-1) <= kGpuHeadSize) return false;
  TORCH_WARN_ONCE("scaled_dot_product_attention: head sizes above ", kGpuHeadSize,
                  " are computed by native PyTorch on a GPU, got ", query.sym_size(-1), " and ", value.sym_size(-1));
  return true;
}

Tensor scaled_dot_product_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                    const OptionalTensor& attn_mask, double dropout_p, bool is_causal,
                                    std::optional<double> scale, bool enable_gqa) {
  const Tensor mask = value_or_undefined(attn_mask);
  const bool native_mask =
      layout_needs_native(mask) || (mask.defined() && mask.scalar_type() != at::kBool && tensor_needs_native(mask));
  if (native_mask || use_native(Op::kAttention, query, key, value) || is_too_wide_for_gpu(query, value)) {
    return at::scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa);
  }
  const auto [q, k, v, contiguous] = prepare_attention(query, key, value, mask, dropout_p, is_causal, enable_gqa);
  OptionalTensor seed;
  if (dropout_p > 0) {
    seed = draws_mask(dropout_p, true) ? dropout_seed(query) : at::zeros({1}, query.options().dtype(at::kLong));
  }
  Tensor output;
  if (records_grad(q, k, v, mask)) {
    output = AttentionFunction::apply(q, k, v, attn_mask, seed, dropout_p, is_causal, scale);
  } else {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    output = std::get<0>(attention_forward(q, k, v, attn_mask, seed, dropout_p, is_causal, scale));
  }
  return contiguous ? as_new(output) : output;
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CompositeImplicitAutograd, m) {
  m.impl("scaled_dot_product_attention", tilewright::scaled_dot_product_attention);
}
TORCH_LIBRARY_IMPL(tilewright, FuncTorchBatched, m) {
  m.impl("scaled_dot_product_attention", tilewright::scaled_dot_product_attention);
}
// Native's autocast runs attention in the lower precision.
TORCH_LIBRARY_IMPL(tilewright, AutocastCPU, m) {
  tilewright::register_precision<"scaled_dot_product_attention", at::kCPU>(m, tilewright::scaled_dot_product_attention);
}
TORCH_LIBRARY_IMPL(tilewright, AutocastCUDA, m) {
  tilewright::register_precision<"scaled_dot_product_attention", at::kCUDA>(m,
                                                                            tilewright::scaled_dot_product_attention);
}

// scaled_dot_product_attention: O = softmax(scale * Q K^T + mask) V for every head.
//
// query [*, H, Sq, D], key [*, Hk, Sk, D], value [*, Hk, Sk, Dv], output [*, H, Sq, Dv]; the heads dimension and those
// before it may be missing. H is a multiple of Hk: query head h reads key head h / (H / Hk). logsumexp [*, H, Sq] is
// +Inf where a query attends to nothing.
#pragma once
#include "ops/library.h"

namespace tilewright {

// The arguments of a call as the raw ops take them.
struct AttentionInputs {
  Tensor query, key, value;
  bool output_is_contiguous;  // else the output lies in memory as query does
};

// Raises what native raises for arguments that do not fit together, and broadcasts leading dimensions.
AttentionInputs prepare_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& attn_mask,
                                  double dropout_p, bool is_causal, bool enable_gqa);

std::tuple<Tensor, Tensor> attention_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                             const OptionalTensor& attn_mask, const OptionalTensor& seed,
                                             double dropout_p, bool is_causal, std::optional<double> scale);

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& output,
    const Tensor& logsumexp, const OptionalTensor& attn_mask, const OptionalTensor& seed, double dropout_p,
    bool is_causal, std::optional<double> scale, std::array<bool, 4> output_mask);

}  // namespace tilewright

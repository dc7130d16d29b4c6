#include "ops/attention.h"

#include <ATen/ops/repeat_interleave.h>

namespace tilewright {
namespace {

constexpr const char* kName = "scaled_dot_product_attention: ";

void check_query_key_value(const Tensor& query, const Tensor& key, const Tensor& value) {
  TORCH_CHECK_TYPE(query.defined() && key.defined() && value.defined(), kName,
                   "query, key and value must be Tensors, got None");
  TORCH_CHECK(query.dim() >= 2 && key.dim() >= 2 && value.dim() >= 2, kName,
              "query, key and value must have at least 2 dimensions, got query ", query.sym_sizes(), ", key ",
              key.sym_sizes(), " and value ", value.sym_sizes());
  TORCH_CHECK(query.scalar_type() == key.scalar_type() && query.scalar_type() == value.scalar_type(), kName,
              "query, key and value must have the same dtype, got ", query.scalar_type(), ", ", key.scalar_type(),
              " and ", value.scalar_type());
  TORCH_CHECK(query.device() == key.device() && query.device() == value.device(), kName,
              "query, key and value must be on the same device, got ", query.device(), ", ", key.device(), " and ",
              value.device());
  TORCH_CHECK(query.sym_size(-1) == key.sym_size(-1), kName, "key must have query's head size ", query.sym_size(-1),
              " (last dimension), got key ", key.sym_sizes());
  TORCH_CHECK(key.sym_size(-2) == value.sym_size(-2), kName, "value must have key's length ", key.sym_size(-2),
              " (dimension -2), got value ", value.sym_sizes());
}

void check_mask(const Tensor& mask, const Tensor& query, const Tensor& key, c10::SymIntArrayRef leading,
                bool needs_rows) {
  const auto dtype = mask.scalar_type();
  TORCH_CHECK(dtype == at::kBool || dtype == at::kFloat || dtype == query.scalar_type(), kName,
              "attn_mask must be bool, float32 or of query's dtype ", query.scalar_type(), ", got ", dtype);
  TORCH_CHECK(mask.device() == query.device(), kName, "attn_mask must be on query's device ", query.device(), ", got ",
              mask.device());
  TORCH_CHECK_INDEX(!needs_rows || mask.dim() >= 2, kName, "attn_mask must have at least 2 dimensions, got ",
                    mask.sym_sizes());
  std::vector<c10::SymInt> scores(leading.begin(), leading.end());
  scores.push_back(query.sym_size(-2));
  scores.push_back(key.sym_size(-2));
  const auto rank = static_cast<int64_t>(scores.size());
  bool fits = mask.dim() <= rank;
  for (int64_t d = 1; fits && d <= mask.dim(); ++d) {
    fits = mask.sym_size(-d) == 1 || mask.sym_size(-d) == scores[static_cast<size_t>(rank - d)];
  }
  TORCH_CHECK(fits, kName, "attn_mask must broadcast to ", c10::SymIntArrayRef(scores),
              " (leading dimensions, queries, keys), got ", mask.sym_sizes());
}

// Sizes of all but the last `rows` dimensions.
c10::SymIntArrayRef leading_sizes(const Tensor& tensor, int64_t rows) {
  const auto sizes = tensor.sym_sizes();
  return sizes.slice(0, static_cast<size_t>(std::max<int64_t>(0, tensor.dim() - rows)));
}

void broadcast_into(std::vector<c10::SymInt>& sizes, c10::SymIntArrayRef other, const Tensor& query, const Tensor& key,
                    const Tensor& value) {
  if (other.size() > sizes.size()) sizes.insert(sizes.begin(), other.size() - sizes.size(), c10::SymInt(1));
  for (size_t d = 0; d < other.size(); ++d) {
    c10::SymInt& size = sizes[sizes.size() - 1 - d];
    const c10::SymInt& theirs = other[other.size() - 1 - d];
    if (size == theirs || theirs == 1) continue;
    TORCH_CHECK(size == 1, kName, "leading dimensions of query ", query.sym_sizes(), ", key ", key.sym_sizes(),
                " and value ", value.sym_sizes(), " must broadcast");
    size = theirs;
  }
}

// The tensor with those leading dimensions; heads: its own number of heads, or -1 for none.
Tensor expand_leading(const Tensor& tensor, const std::vector<c10::SymInt>& batch, bool has_heads,
                      const c10::SymInt& heads) {
  std::vector<c10::SymInt> sizes = batch;
  if (has_heads) sizes.push_back(heads);
  sizes.push_back(tensor.sym_size(-2));
  sizes.push_back(tensor.sym_size(-1));
  if (tensor.sym_sizes().equals(sizes)) return tensor;
  return tensor.expand_symint(sizes);
}

}  // namespace

AttentionInputs prepare_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& attn_mask,
                                  double dropout_p, bool is_causal, bool enable_gqa) {
  check_query_key_value(query, key, value);
  TORCH_CHECK(dropout_p >= 0 && dropout_p <= 1, kName, "dropout probability has to be between 0 and 1, but got ",
              dropout_p);
  TORCH_CHECK(!is_causal || !attn_mask.defined(), kName,
              "attn_mask must be None where is_causal=True, got attn_mask of shape ", attn_mask.sym_sizes());
  TORCH_CHECK_INDEX(!enable_gqa || (query.dim() >= 3 && key.dim() >= 3 && value.dim() >= 3), kName,
                    "enable_gqa needs a dimension of heads, got query ", query.sym_sizes(), ", key ", key.sym_sizes(),
                    " and value ", value.sym_sizes());

  std::vector<c10::SymInt> batch;
  for (const Tensor* tensor : {&query, &key, &value})
    broadcast_into(batch, leading_sizes(*tensor, 3), query, key, value);
  const bool has_heads = query.dim() > 2 || key.dim() > 2 || value.dim() > 2;
  const auto heads_of = [](const Tensor& tensor) { return tensor.dim() > 2 ? tensor.sym_size(-3) : c10::SymInt(1); };
  c10::SymInt heads = heads_of(query);
  const c10::SymInt key_heads = heads_of(key), value_heads = heads_of(value);
  Tensor k = key, v = value;
  c10::SymInt shared_heads = key_heads;
  if (enable_gqa) {
    TORCH_CHECK(key_heads != 0 && value_heads != 0 && heads % key_heads == 0 && heads % value_heads == 0, kName,
                "heads of key and value must divide the heads of query, ", heads, ", got ", key_heads, " and ",
                value_heads);
    if (key_heads != value_heads) {
      if (key_heads != heads) k = at::repeat_interleave_symint(key, heads / key_heads, -3);
      if (value_heads != heads) v = at::repeat_interleave_symint(value, heads / value_heads, -3);
      shared_heads = heads;
    }
  } else {
    std::vector<c10::SymInt> all{heads};
    broadcast_into(all, {key_heads}, query, key, value);
    broadcast_into(all, {value_heads}, query, key, value);
    heads = all[0];
    if (key_heads != value_heads || (key_heads != 1 && key_heads != heads)) shared_heads = heads;
  }
  std::vector<c10::SymInt> leading = batch;
  if (has_heads) leading.push_back(heads);

  // Native's fused kernel takes 4-D tensors of one head size and gives the output query's layout; its other path gives
  // a contiguous one. It reads the mask's rows before it looks at the rest.
  const bool mask_learns = attn_mask.defined() && attn_mask.requires_grad();
  const bool fits = query.dim() == 4 && key.dim() == 4 && value.dim() == 4 && dropout_p == 0 && !mask_learns &&
                    query.sym_size(0) == key.sym_size(0) && query.sym_size(0) == value.sym_size(0) &&
                    key_heads == value_heads && (enable_gqa || heads_of(query) == key_heads);
  if (attn_mask.defined()) check_mask(attn_mask, query, key, leading, fits);
  const auto unit_stride = [](const Tensor& tensor) { return tensor.sym_stride(-1) == 1; };
  const bool fused = fits && query.sym_size(-1) == value.sym_size(-1) && unit_stride(query) && unit_stride(key) &&
                     unit_stride(value) && (!attn_mask.defined() || attn_mask.dim() == 2 || attn_mask.dim() == 4);
  return {expand_leading(query, batch, has_heads, heads), expand_leading(k, batch, has_heads, shared_heads),
          expand_leading(v, batch, has_heads, shared_heads), !fused};
}

std::tuple<Tensor, Tensor> attention_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                             const OptionalTensor& attn_mask, const OptionalTensor& seed,
                                             double dropout_p, bool is_causal, std::optional<double> scale) {
  static const auto op = find_op<decltype(attention_forward)>("tilewright::attention_forward");
  return op.call(query, key, value, attn_mask, seed, dropout_p, is_causal, scale);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& output,
    const Tensor& logsumexp, const OptionalTensor& attn_mask, const OptionalTensor& seed, double dropout_p,
    bool is_causal, std::optional<double> scale, std::array<bool, 4> output_mask) {
  static const auto op = find_op<decltype(attention_backward)>("tilewright::attention_backward");
  return op.call(grad_output, query, key, value, output, logsumexp, attn_mask, seed, dropout_p, is_causal, scale,
                 output_mask);
}

}  // namespace tilewright

TORCH_LIBRARY_FRAGMENT(tilewright, m) {
  m.def(
      "scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, "
      "float dropout_p=0.0, bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def(
      "attention_forward(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? seed, float dropout_p, "
      "bool is_causal, float? scale) -> (Tensor output, Tensor logsumexp)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor output, "
      "Tensor logsumexp, Tensor? attn_mask, Tensor? seed, float dropout_p, bool is_causal, float? scale, "
      "bool[4] output_mask) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_mask)",
      {at::Tag::pt2_compliant_tag});
}

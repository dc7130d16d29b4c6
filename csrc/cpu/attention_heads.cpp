#include "cpu/attention_heads.h"

namespace tilewright {
namespace {

constexpr const char* kName = "attention: ";

void check_sizes(const Tensor& query, const Tensor& key, const Tensor& value) {
  const auto rank = query.dim();
  TORCH_CHECK(rank >= 2 && key.dim() == rank && value.dim() == rank, kName,
              "query, key and value must have the same number of dimensions, 2 or more, got ", query.sizes(), ", ",
              key.sizes(), " and ", value.sizes());
  bool fits = query.size(-1) == key.size(-1) && key.sizes().slice(0, rank - 1).equals(value.sizes().slice(0, rank - 1));
  for (int64_t d = 0; d < rank - 3; ++d) fits &= query.size(d) == key.size(d);
  if (rank > 2 && query.size(-3) != key.size(-3)) fits &= key.size(-3) > 0 && query.size(-3) % key.size(-3) == 0;
  TORCH_CHECK(fits, kName,
              "query [*, H, Sq, D], key [*, Hk, Sk, D] and value [*, Hk, Sk, Dv] with Hk dividing H "
              "expected, got ",
              query.sizes(), ", ", key.sizes(), " and ", value.sizes());
  TORCH_CHECK(query.scalar_type() == key.scalar_type() && query.scalar_type() == value.scalar_type(), kName,
              "query, key and value must have one dtype, got ", query.scalar_type(), ", ", key.scalar_type(), " and ",
              value.scalar_type());
}

}  // namespace

std::vector<int64_t> head_offsets(const Tensor& tensor, int64_t rows) {
  if (!tensor.defined()) return std::vector<int64_t>(1, 0);
  const int64_t dims = tensor.dim() - rows;
  std::vector<int64_t> offsets{0};
  for (int64_t d = 0; d < dims; ++d) {
    std::vector<int64_t> inner;
    inner.reserve(offsets.size() * static_cast<size_t>(tensor.size(d)));
    for (const int64_t offset : offsets) {
      for (int64_t i = 0; i < tensor.size(d); ++i) inner.push_back(offset + i * tensor.stride(d));
    }
    offsets.swap(inner);
  }
  return offsets;
}

Tensor expand_mask(const Tensor& mask, at::IntArrayRef query_sizes, int64_t keys) {
  std::vector<int64_t> sizes = query_sizes.vec();
  sizes.back() = keys;
  return mask.expand(sizes);
}

AttentionTensors attention_tensors(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& mask,
                                   const Tensor& seed, double dropout_p) {
  check_sizes(query, key, value);
  const int64_t heads = query.dim() > 2 ? query.size(-3) : 1, key_heads = key.dim() > 2 ? key.size(-3) : 1;
  AttentionTensors in{with_contiguous_rows(query),
                      with_contiguous_rows(key),
                      with_contiguous_rows(value),
                      Tensor(),
                      Tensor(),
                      heads == key_heads ? 1 : heads / key_heads,
                      MaskKind::kNone};
  if (dropout_p > 0) in.seed = seed;
  TORCH_CHECK(dropout_p == 0 || seed.defined(), kName, "dropout needs a seed");
  if (!mask.defined()) return in;

  const auto dtype = query.scalar_type(), mask_dtype = mask.scalar_type();
  TORCH_CHECK(mask_dtype == at::kBool || mask_dtype == at::kFloat || mask_dtype == dtype, kName,
              "attn_mask must be bool, float32 or of query's dtype ", dtype, ", got ", mask_dtype);
  Tensor readable = mask_dtype == at::kFloat && dtype == at::kDouble ? mask.to(dtype) : mask;
  if (mask.dim() > 0 && mask.size(-1) > 1 && mask.stride(-1) > 1) readable = readable.contiguous();
  in.mask = expand_mask(readable, query.sizes(), key.size(-2));
  // One key: any stride will do, and 1 is what lets the mask's columns be scanned.
  if (in.mask.size(-1) == 1)
    in.mask = in.mask.as_strided(in.mask.sizes(), [&] {
      auto strides = in.mask.strides().vec();
      strides.back() = 1;
      return strides;
    }());
  in.mask_kind = mask_dtype == at::kBool           ? MaskKind::kBool
                 : readable.scalar_type() == dtype ? MaskKind::kElement
                                                   : MaskKind::kAccumulator;
  return in;
}

void check_saved(const AttentionTensors& in, const Tensor& grad_output, const Tensor& output, const Tensor& logsumexp) {
  const auto dtype = in.query.scalar_type();
  std::vector<int64_t> shape = in.query.sizes().vec();
  shape.back() = in.value.size(-1);
  const auto belongs = [&](const Tensor& tensor, at::ScalarType expected) {
    return tensor.sizes().equals(shape) && tensor.scalar_type() == expected;
  };
  TORCH_CHECK(belongs(grad_output, dtype) && belongs(output, dtype),
              "attention_backward: grad_output and output must be ", dtype, " of shape ", shape, ", got ",
              grad_output.scalar_type(), " ", grad_output.sizes(), " and ", output.scalar_type(), " ", output.sizes());
  shape.pop_back();
  TORCH_CHECK(belongs(logsumexp, accumulation_dtype(dtype)), "attention_backward: logsumexp must be ",
              accumulation_dtype(dtype), " of shape ", shape, ", got ", logsumexp.scalar_type(), " ",
              logsumexp.sizes());
}

}  // namespace tilewright

// From attention's tensors to what its kernels take: one problem for all heads, and pointers per head.
#pragma once
#include <cmath>
#include <vector>

#include "cpu/keep_mask.h"
#include "cpu/kernel_table.h"
#include "cpu/scratch_tensor.h"
#include "cpu/tensors.h"

namespace tilewright {

// Slots of thread_scratch.
constexpr int kPackedSlot = 6, kWorkSlot = 7;
// Tasks a call is cut into at least, where the shape allows it.
constexpr int64_t kWantedTasks = 16;

template <typename A>
A* attention_scratch(int slot, int64_t elements) {
  return static_cast<A*>(thread_scratch(slot, static_cast<size_t>(elements) * sizeof(A)));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Position i of n in an order in which early and late ones alternate: under a causal mask late blocks of queries cost
// more than early ones, and threads take contiguous runs.
inline int64_t balanced(int64_t i, int64_t n) { return i % 2 == 0 ? i / 2 : n - 1 - i / 2; }

inline bool has_contiguous_rows(const Tensor& tensor) { return tensor.size(-1) <= 1 || tensor.stride(-1) == 1; }

inline Tensor with_contiguous_rows(const Tensor& tensor) {
  return has_contiguous_rows(tensor) ? tensor : tensor.contiguous();
}

inline int64_t row_stride(const Tensor& tensor) { return tensor.defined() ? tensor.stride(-2) : 0; }

// Element offsets of all index combinations of the dimensions before the last `rows`, in row-major order; one offset 0
// where there are none or the tensor is undefined.
std::vector<int64_t> head_offsets(const Tensor& tensor, int64_t rows);

// The mask seen as [*, H, Sq, Sk] through stride 0.
Tensor expand_mask(const Tensor& mask, at::IntArrayRef query_sizes, int64_t keys);

struct AttentionTensors {
  Tensor query, key, value;  // rows contiguous
  Tensor mask;               // expanded to [*, H, Sq, Sk], last stride 0 or 1; or undefined
  Tensor seed;               // or undefined: no dropout
  int64_t group;             // query heads per key head
  MaskKind mask_kind;
};

// Checks that raw ops read and write within their tensors; copies what kernels cannot read in place.
AttentionTensors attention_tensors(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& mask,
                                   const Tensor& seed, double dropout_p);

// Raises where what a backward was given does not belong to the inputs.
void check_saved(const AttentionTensors& in, const Tensor& grad_output, const Tensor& output, const Tensor& logsumexp);

template <typename T>
AttentionProblem<T> attention_problem(const AttentionTensors& in, const Tensor& output, bool is_causal,
                                      std::optional<double> scale, double dropout_p) {
  const auto head_size = in.query.size(-1);
  AttentionProblem<T> problem{};
  problem.queries = in.query.size(-2);
  problem.keys = in.key.size(-2);
  problem.head_size = head_size;
  problem.value_size = in.value.size(-1);
  problem.query_row = row_stride(in.query);
  problem.key_row = row_stride(in.key);
  problem.value_row = row_stride(in.value);
  problem.output_row = row_stride(output);
  problem.scale = static_cast<Acc<T>>(scale.has_value() ? *scale : 1 / std::sqrt(static_cast<double>(head_size)));
  problem.causal = is_causal;
  problem.mask_kind = in.mask_kind;
  if (in.mask.defined()) {
    problem.mask_row = in.mask.stride(-2);
    problem.mask_col = in.mask.stride(-1);
  }
  problem.dropout = in.seed.defined();
  if (problem.dropout) problem.rule = dropout_rule_of(in.seed, dropout_p, "scaled_dot_product_attention");
  return problem;
}

template <typename T>
std::vector<AttentionHead<T>> attention_heads(const AttentionTensors& in, const Tensor& output,
                                              const Tensor& logsumexp) {
  const auto query_at = head_offsets(in.query, 2), key_at = head_offsets(in.key, 2),
             value_at = head_offsets(in.value, 2), mask_at = head_offsets(in.mask, 2),
             output_at = head_offsets(output, 2);
  const int64_t queries = in.query.size(-2);
  const int64_t mask_bytes = in.mask.defined() ? static_cast<int64_t>(in.mask.element_size()) : 0;
  const auto* mask = in.mask.defined() ? static_cast<const char*>(in.mask.const_data_ptr()) : nullptr;
  // The forward writes through these, the backward only reads.
  T* out = const_cast<T*>(const_data<T>(output));
  Acc<T>* lse = const_cast<Acc<T>*>(const_data<Acc<T>>(logsumexp));
  std::vector<AttentionHead<T>> heads(query_at.size());
  for (size_t i = 0; i < heads.size(); ++i) {
    const size_t shared = i / static_cast<size_t>(in.group);
    heads[i] = {const_data<T>(in.query) + query_at[i],
                const_data<T>(in.key) + key_at[shared],
                const_data<T>(in.value) + value_at[shared],
                mask != nullptr ? mask + mask_at[i] * mask_bytes : nullptr,
                out + output_at[i],
                lse + static_cast<int64_t>(i) * queries,
                static_cast<int64_t>(i)};
  }
  return heads;
}

}  // namespace tilewright

// Attention backward on the CPU. Tasks are cut by the shape alone and their shares added in order, so gradients are the
// same for any number of threads.
#include "cpu/attention_heads.h"
#include "ops/attention.h"

namespace tilewright {
namespace {

constexpr int64_t kMinQueries = 128;  // of a task that takes a stretch of queries

// delta as the sum over keys of P * dP, [heads, Sq]; undefined where rowsum(dO * O) serves. They differ by the rounding
// of O to 16 bits: native's fused kernel has it too, but what that does not compute (a learned mask, dropout, values of
// another size) native computes in float32, and exactly.
template <typename T>
Tensor row_deltas(const AttentionBackwardProblem<T>& problem, const std::vector<AttentionHead<T>>& heads,
                  const Tensor& dout, bool wants_mask) {
  using A = Acc<T>;
  const AttentionProblem<T>& p = problem.forward;
  const bool is_rounded = sizeof(T) < sizeof(A), native_is_exact = p.dropout || p.head_size != p.value_size;
  if (!is_rounded || !(wants_mask || native_is_exact)) return Tensor();
  const AttentionKernels<T>& kernel = kernels<T>().attention;
  const auto total = static_cast<int64_t>(heads.size());
  const Tensor deltas = at::zeros({total, p.queries}, c10::CppTypeToScalarType<A>::value);
  const auto dout_at = head_offsets(dout, 2);
  const int64_t chunks = ceil_div(p.queries, kMinQueries), chunk = ceil_div(p.queries, chunks);
  const int64_t cost = chunk * p.keys * (p.head_size + p.value_size) / 16;
  parallel_for_cost(total * chunks, cost, [&](int64_t begin, int64_t end) {
    A* work = attention_scratch<A>(kWorkSlot, kernel.mask_scratch(p, chunk));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / chunks, first = i % chunks * chunk, last = std::min(p.queries, first + chunk);
      if (first >= last) continue;
      kernel.row_delta(problem, heads[head], const_data<T>(dout) + dout_at[head], first, last,
                       mutable_data<A>(deltas) + head * p.queries, work);
    }
  });
  return deltas;
}

// Gradients of query, key and value. Tasks are chunks of keys of a key head; each leaves its share of the query
// gradient, and the shares are added in order.
template <typename T>
void backward_heads(const AttentionTensors& in, const AttentionBackwardProblem<T>& problem,
                    const std::vector<AttentionHead<T>>& heads, const Tensor& dout, const Tensor& deltas,
                    const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  using A = Acc<T>;
  const AttentionKernels<T>& kernel = kernels<T>().attention;
  const AttentionProblem<T>& p = problem.forward;
  const auto total = static_cast<int64_t>(heads.size()), key_heads = total / in.group;
  const int64_t block = kernel.key_block(p);
  const int64_t wanted = std::min(ceil_div(kWantedTasks, key_heads), ceil_div(p.keys, block));
  const int64_t chunk = ceil_div(ceil_div(p.keys, wanted), block) * block, chunks = ceil_div(p.keys, chunk);
  const int64_t part = p.queries * p.head_size;
  Tensor parts;  // [chunks, heads, Sq, D]
  if (chunks > 1 && dq.defined()) parts = scratch_tensor({chunks, total, part}, c10::CppTypeToScalarType<A>::value);
  A* const parts_data = mutable_data<A>(parts);

  std::vector<AttentionGradients<T>> gradients(total);
  const auto dout_at = head_offsets(dout, 2), dq_at = head_offsets(dq, 2), dk_at = head_offsets(dk, 2),
             dv_at = head_offsets(dv, 2);
  for (int64_t i = 0; i < total; ++i) {
    gradients[i].grad_output = const_data<T>(dout) + dout_at[i];
    gradients[i].delta = deltas.defined() ? const_data<A>(deltas) + i * p.queries : nullptr;
    gradients[i].grad_query = dq.defined() && chunks == 1 ? mutable_data<T>(dq) + dq_at[i] : nullptr;
    gradients[i].query_part = nullptr;
  }
  const int64_t cost = in.group * p.queries * std::min(chunk, p.keys) * (p.head_size + p.value_size) / 8;
  parallel_for_cost(key_heads * chunks, cost, [&](int64_t begin, int64_t end) {
    A* work = attention_scratch<A>(kWorkSlot, kernel.backward_scratch(p, std::min(chunk, p.keys)));
    std::vector<AttentionGradients<T>> group(in.group);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / chunks, c = balanced(i % chunks, chunks);
      for (int64_t g = 0; g < in.group; ++g) {
        group[g] = gradients[head * in.group + g];
        if (parts.defined()) group[g].query_part = parts_data + (c * total + head * in.group + g) * part;
      }
      kernel.backward(problem, &heads[head * in.group], group.data(), in.group, c * chunk,
                      std::min(p.keys, (c + 1) * chunk), dk.defined() ? mutable_data<T>(dk) + dk_at[head] : nullptr,
                      dv.defined() ? mutable_data<T>(dv) + dv_at[head] : nullptr, work);
    }
  });
  if (!parts.defined()) return;
  parallel_for_cost(total, chunks * part, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernel.merge_query_parts(problem, parts_data + i * part, chunks, total * part, mutable_data<T>(dq) + dq_at[i]);
    }
  });
}

// Gradient of the mask, in the accumulation type and the mask's own shape. A task is a stretch of queries of one slice
// of the mask: it goes through the heads that share the slice in order.
template <typename T>
void mask_gradient(const AttentionTensors& in, const AttentionBackwardProblem<T>& problem,
                   const std::vector<AttentionHead<T>>& heads, const Tensor& dout, const Tensor& deltas,
                   const Tensor& dmask) {
  using A = Acc<T>;
  const AttentionKernels<T>& kernel = kernels<T>().attention;
  const AttentionProblem<T>& p = problem.forward;
  const Tensor expanded = expand_mask(dmask, in.query.sizes(), p.keys);
  const auto offsets = head_offsets(expanded, 2), dout_at = head_offsets(dout, 2);
  const int64_t rows = dmask.dim() > 1 ? dmask.size(-2) : 1, columns = dmask.dim() > 0 ? dmask.size(-1) : 1;
  const int64_t slice = std::max<int64_t>(1, rows * columns);
  const int64_t slices = dmask.numel() / slice;
  std::vector<std::vector<int64_t>> sharing(slices);
  for (size_t i = 0; i < heads.size(); ++i) sharing[offsets[i] / slice].push_back(static_cast<int64_t>(i));
  // Where all queries share a row of the mask, they have to be added up by one task.
  const int64_t wanted =
      rows == p.queries
          ? std::max<int64_t>(1, std::min(ceil_div(kWantedTasks, slices), ceil_div(p.queries, kMinQueries)))
          : 1;
  const int64_t chunk = ceil_div(p.queries, wanted);
  const int64_t cost = std::max<int64_t>(1, static_cast<int64_t>(heads.size()) / slices) * chunk * p.keys *
                       (p.head_size + p.value_size) / 16;
  parallel_for_cost(slices * wanted, cost, [&](int64_t begin, int64_t end) {
    A* work = attention_scratch<A>(kWorkSlot, kernel.mask_scratch(p, chunk));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % wanted * chunk, last = std::min(p.queries, first + chunk);
      if (first >= last) continue;
      for (const int64_t head : sharing[i / wanted]) {
        kernel.mask_gradient(problem, heads[head], const_data<T>(dout) + dout_at[head],
                             deltas.defined() ? const_data<A>(deltas) + head * p.queries : nullptr, first, last,
                             mutable_data<A>(dmask) + offsets[head], expanded.stride(-2), expanded.stride(-1), work);
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward_cpu(
    const Tensor& grad_output, const Tensor& query_in, const Tensor& key_in, const Tensor& value_in,
    const Tensor& output, const Tensor& logsumexp, const OptionalTensor& attn_mask, const OptionalTensor& seed,
    double dropout_p, bool is_causal, std::optional<double> scale, std::array<bool, 4> output_mask) {
  const Tensor mask = value_or_undefined(attn_mask);
  const AttentionTensors in = attention_tensors(query_in, key_in, value_in, mask, value_or_undefined(seed), dropout_p);
  const auto dtype = in.query.scalar_type();
  check_saved(in, grad_output, output, logsumexp);
  const Tensor dout = with_contiguous_rows(grad_output), out = with_contiguous_rows(output);
  const Tensor lse = logsumexp.contiguous();

  // Rows of a gradient are contiguous; otherwise it lies in memory as its tensor does.
  const auto gradient_of = [](const Tensor& tensor, bool wanted) {
    return !wanted                       ? Tensor()
           : has_contiguous_rows(tensor) ? at::empty_like(tensor)
                                         : at::empty(tensor.sizes(), tensor.options());
  };
  const Tensor dq = gradient_of(query_in, output_mask[0]), dk = gradient_of(key_in, output_mask[1]),
               dv = gradient_of(value_in, output_mask[2]);
  const bool wants_mask = output_mask[3] && mask.defined();
  TORCH_CHECK(!wants_mask || mask.scalar_type() != at::kBool, "attention_backward: a bool attn_mask has no gradient");
  Tensor dmask;
  if (wants_mask) dmask = at::zeros(mask.sizes(), mask.options().dtype(accumulation_dtype(dtype)));

  if (lse.numel() == 0 || in.key.size(-2) == 0) {
    for (const Tensor* gradient : {&dq, &dk, &dv}) {
      if (gradient->defined()) gradient->zero_();
    }
  } else {
    dispatch_floating(dtype, "attention_backward", [&](auto element) {
      using T = decltype(element);
      const AttentionBackwardProblem<T> problem{attention_problem<T>(in, out, is_causal, scale, dropout_p),
                                                row_stride(dout), row_stride(dq), row_stride(dk), row_stride(dv)};
      const auto heads = attention_heads<T>(in, out, lse);
      const Tensor deltas = row_deltas<T>(problem, heads, dout, wants_mask);
      if (dq.defined() || dk.defined() || dv.defined()) backward_heads<T>(in, problem, heads, dout, deltas, dq, dk, dv);
      if (wants_mask) mask_gradient<T>(in, problem, heads, dout, deltas, dmask);
    });
  }
  return {dq, dk, dv, wants_mask ? dmask.to(mask.scalar_type()) : Tensor()};
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) { m.impl("attention_backward", tilewright::attention_backward_cpu); }

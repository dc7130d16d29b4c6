// Attention forward on the CPU: heads, blocks of queries and chunks of keys over threads. How work is cut depends on
// the shape alone (or, in the forward, changes no row's arithmetic), so results are the same for any number of threads.
#include "ops/attention.h"

#include "cpu/attention_heads.h"

namespace tilewright {
namespace {

// At most four queries per head: keys are read once, split into chunks where heads are few.
template <typename T>
void stream_heads(const AttentionProblem<T>& problem, const std::vector<AttentionHead<T>>& heads, int64_t group) {
  using A = Acc<T>;
  const AttentionKernels<T>& kernel = kernels<T>().attention;
  const auto total = static_cast<int64_t>(heads.size()), key_heads = total / group;
  constexpr int64_t kMinKeys = 512, kKeyStep = 64;
  const int64_t keys = problem.visible_keys();
  const int64_t wanted = std::min(ceil_div(kWantedTasks, key_heads), ceil_div(keys, kMinKeys));
  const int64_t chunk = ceil_div(ceil_div(keys, wanted), kKeyStep) * kKeyStep;
  const int64_t chunks = ceil_div(keys, chunk), part = problem.value_size + 2;
  const Tensor parts = scratch_tensor({chunks, total, problem.queries, part}, c10::CppTypeToScalarType<A>::value);
  A* const parts_data = mutable_data<A>(parts);
  const int64_t cost = chunk * group * problem.queries * (problem.head_size + problem.value_size);
  parallel_for_cost(key_heads * chunks, cost, [&](int64_t begin, int64_t end) {
    A* work = attention_scratch<A>(kWorkSlot, kernel.stream_scratch(problem, group));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / chunks * group, c = i % chunks;
      kernel.stream(problem, &heads[first], group, c * chunk, std::min(keys, (c + 1) * chunk),
                    parts_data + (c * total + first) * problem.queries * part, part, work);
    }
  });
  parallel_for_cost(total, chunks * problem.queries * part, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernel.merge_parts(problem, heads[i], parts_data + i * problem.queries * part, part, chunks,
                         total * problem.queries * part);
    }
  });
}

// One task is a key head with all its query heads: its keys and values are packed in the thread's own memory.
template <typename T>
void forward_by_heads(const AttentionProblem<T>& problem, const std::vector<AttentionHead<T>>& heads, int64_t group) {
  using A = Acc<T>;
  const AttentionKernels<T>& kernel = kernels<T>().attention;
  const int64_t tiles = kernel.query_tiles(problem.queries);
  const int64_t cost = group * problem.queries * problem.keys * (problem.head_size + problem.value_size) / 16;
  parallel_for_cost(static_cast<int64_t>(heads.size()) / group, cost, [&](int64_t begin, int64_t end) {
    A* packed = attention_scratch<A>(kPackedSlot, kernel.packed_size(problem));
    A* work = attention_scratch<A>(kWorkSlot, kernel.forward_scratch(problem));
    for (int64_t i = begin * group; i < end * group; ++i) {
      if (i % group == 0) kernel.pack(problem, heads[i].key, heads[i].value, 0, problem.keys, packed);
      kernel.forward(problem, heads[i], 0, tiles, packed, work);
    }
  });
}

// Few heads: all keys and values are packed first, then a task is a block of queries.
template <typename T>
void forward_by_blocks(const AttentionProblem<T>& problem, const std::vector<AttentionHead<T>>& heads, int64_t group) {
  using A = Acc<T>;
  const AttentionKernels<T>& kernel = kernels<T>().attention;
  const auto total = static_cast<int64_t>(heads.size()), key_heads = total / group;
  const int64_t packed_size = kernel.packed_size(problem), key_block = kernel.key_block(problem);
  const Tensor packed = scratch_tensor({key_heads * packed_size}, c10::CppTypeToScalarType<A>::value);
  A* const packed_data = mutable_data<A>(packed);
  const int64_t key_blocks = ceil_div(problem.keys, key_block);
  const int64_t row_cost = problem.head_size + problem.value_size;
  parallel_for_cost(key_heads * key_blocks, key_block * row_cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / key_blocks, key = i % key_blocks * key_block;
      kernel.pack(problem, heads[head * group].key, heads[head * group].value, key,
                  std::min(problem.keys, key + key_block), packed_data + head * packed_size);
    }
  });
  const int64_t tiles = kernel.query_tiles(problem.queries), blocks = ceil_div(tiles, kernel.tiles_per_block);
  const int64_t cost = problem.queries / blocks * problem.keys * row_cost / 16;
  parallel_for_cost(total * blocks, cost, [&](int64_t begin, int64_t end) {
    A* work = attention_scratch<A>(kWorkSlot, kernel.forward_scratch(problem));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / blocks, block = balanced(i % blocks, blocks);
      kernel.forward(problem, heads[head], tiles * block / blocks, tiles * (block + 1) / blocks,
                     packed_data + head / group * packed_size, work);
    }
  });
}

std::tuple<Tensor, Tensor> attention_forward_cpu(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in,
                                                 const OptionalTensor& attn_mask, const OptionalTensor& seed,
                                                 double dropout_p, bool is_causal, std::optional<double> scale) {
  const AttentionTensors in =
      attention_tensors(query_in, key_in, value_in, value_or_undefined(attn_mask), value_or_undefined(seed), dropout_p);
  const auto dtype = in.query.scalar_type();
  std::vector<int64_t> shape = in.query.sizes().vec();
  shape.back() = in.value.size(-1);
  const bool like_query = !in.seed.defined() && query_in.size(-1) == shape.back();
  Tensor output = like_query ? at::empty_like(query_in) : at::empty(shape, query_in.options());
  shape.pop_back();
  Tensor logsumexp = at::empty(shape, query_in.options().dtype(accumulation_dtype(dtype)));
  if (logsumexp.numel() == 0) return {output, logsumexp};
  if (in.key.size(-2) == 0) {
    logsumexp.fill_(INFINITY);
    return {output.zero_(), logsumexp};
  }
  // empty_like follows a query whose last dimension is strided; kernels write contiguous rows.
  Tensor written = has_contiguous_rows(output) ? output : at::empty(output.sizes(), output.options());

  dispatch_floating(dtype, "attention_forward", [&](auto element) {
    using T = decltype(element);
    const AttentionProblem<T> problem = attention_problem<T>(in, written, is_causal, scale, dropout_p);
    const auto heads = attention_heads<T>(in, written, logsumexp);
    const auto key_heads = static_cast<int64_t>(heads.size()) / in.group;
    constexpr int64_t kStreamQueries = 4;
    if (problem.queries <= kStreamQueries) {
      stream_heads(problem, heads, in.group);
    } else if (key_heads >= 2 * at::get_num_threads() || at::get_num_threads() == 1) {
      forward_by_heads(problem, heads, in.group);
    } else {
      forward_by_blocks(problem, heads, in.group);
    }
  });
  if (!written.is_same(output)) output.copy_(written);
  return {output, logsumexp};
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) { m.impl("attention_forward", tilewright::attention_forward_cpu); }

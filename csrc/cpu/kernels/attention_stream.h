// Attention forward for one to four queries (decoding): keys and values are read once, in place, without packing.
//
// Keys go by in blocks of a few dozen, and every query of every head of the group passes over a block while it is in
// L1. Chunks of keys may be done apart; each leaves {max, sum, output} per query, merged in order afterwards.
#pragma once
#include "cpu/kernels/attention_forward.h"

namespace tilewright {
namespace {

constexpr int64_t kStreamKeys = 64;

template <typename T>
int64_t attention_stream_scratch(const AttentionProblem<T>& p, int64_t group) {
  using A = Acc<T>;
  return group * p.queries * padded_row<A>(p.head_size) + kStreamKeys;
}

// s[j] = q . key j for j < n, kLanes keys at a time: one partial vector per key, then the transposed sum of them.
template <typename T>
inline void stream_logits(const Acc<T>* q, const T* key, int64_t key_row, int64_t head_size, int64_t n, Acc<T>* s) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  for (int64_t j = 0; j < n; j += kStep) {
    Vec<A> partial[kLanes<A>];
    for (int64_t i = 0; i < kStep; ++i) {
      Vec<A> sum{};
      if (j + i < n) {
        const T* k = key + (j + i) * key_row;
        int64_t d = 0;
        for (; d + kStep <= head_size; d += kStep) sum = fma(load(q + d), load(k + d), sum);
        if (d < head_size) sum = fma(load(q + d), load(k + d, head_size - d), sum);
      }
      partial[i] = sum;
    }
    transpose<A>(partial);
#pragma GCC unroll 8
    for (int64_t width = kStep / 2; width > 0; width /= 2) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < width; ++i) partial[i] += partial[i + width];
    }
    store(s + j, partial[0]);
  }
}

// output[Dv] (+)= weights[n] * values, kVectors vectors of columns at a time.
template <typename T, int kVectors>
inline void stream_columns(const Acc<T>* weight, const T* value, int64_t value_row, int64_t n, int64_t width,
                           Acc<T>* output) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  Vec<A> sum[kVectors] = {};
  for (int64_t j = 0; j < n; ++j) {
    const Vec<A> w = broadcast<A>(weight[j]);
    const T* v = value + j * value_row;
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      const int64_t left = width - i * kStep;
      sum[i] = fma(w, left >= kStep ? load(v + i * kStep) : load(v + i * kStep, left), sum[i]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) {
    const int64_t left = width - i * kStep;
    A* out = output + i * kStep;
    if (left >= kStep) {
      store(out, load(out) + sum[i]);
    } else {
      store(out, load(out, left) + sum[i], left);
    }
  }
}

template <typename T>
inline void stream_values(const Acc<T>* weight, const T* value, int64_t value_row, int64_t n, int64_t value_size,
                          Acc<T>* output) {
  constexpr int64_t kStep = kLanes<Acc<T>>;
  int64_t c = 0;
  for (; value_size - c > 3 * kStep; c += 4 * kStep) {
    stream_columns<T, 4>(weight, value + c, value_row, n, value_size - c, output + c);
  }
  for (; c < value_size; c += kStep) {
    stream_columns<T, 1>(weight, value + c, value_row, n, value_size - c, output + c);
  }
}

// One query over keys [key, key + n) of the block; part is {max, sum, output[Dv]}.
template <typename T>
inline void stream_query(const AttentionProblem<T>& p, const AttentionHead<T>& head, const Acc<T>* query, int64_t row,
                         int64_t key, int64_t n, Acc<T>* part, Acc<T>* s) {
  using A = Acc<T>;
  if (p.causal) n = smaller(n, row + 1 - key);
  if (n <= 0) return;
  stream_logits(query, head.key + key * p.key_row, p.key_row, p.head_size, n, s);
  mask_tile(p, head.mask, row, 1, key, n, s, kStreamKeys);
  const A before = part[0], block_max = reduce_max<A>(lanes_of_max(s, n)),
          after = block_max > before ? block_max : before;
  const A origin = after == -kInfinity<A> ? A(0) : after;
  const A factor = base_2_factor(p), shrink = exp2<A>(broadcast<A>((before - origin) * factor))[0];
  part[0] = after;
  part[1] = part[1] * shrink + reduce_add<A>(exponentials<A>(s, n, has_scaled_logits(p), factor, origin, s));
  A* output = part + 2;
  if (shrink != A(1)) {
    for_each_vector<A>(p.value_size, [=](int64_t c, int64_t lanes) TILEWRIGHT_INLINE {
      store(output + c, load(output + c, lanes) * shrink, lanes);
    });
  }
  if (p.dropout) {
    TileKeepBits keep;
    keep.fill(p, head.index, row, 1, key, n);
    drop_probabilities<A>(keep, 1, n, s, kStreamKeys);
  }
  stream_values(s, head.value + key * p.value_row, p.value_row, n, p.value_size, output);
}

template <typename T>
void attention_stream(const AttentionProblem<T>& p, const AttentionHead<T>* heads, int64_t group, int64_t begin,
                      int64_t end, Acc<T>* parts, int64_t part_stride, Acc<T>* scratch) {
  using A = Acc<T>;
  const int64_t query_row = padded_row<A>(p.head_size);
  A* s = scratch + group * p.queries * query_row;
  for (int64_t g = 0; g < group; ++g) {
    copy_rows(p.queries, p.head_size, heads[g].query, p.query_row, scratch + g * p.queries * query_row);
  }
  for (int64_t i = 0; i < group * p.queries; ++i) {
    A* part = parts + i * part_stride;
    part[0] = -kInfinity<A>;
    for (int64_t c = 1; c < p.value_size + 2; ++c) part[c] = A(0);
  }
  for (int64_t key = begin; key < end; key += kStreamKeys) {
    const int64_t n = smaller(kStreamKeys, end - key);
    for (int64_t i = 0; i < group * p.queries; ++i) {
      stream_query(p, heads[i / p.queries], scratch + i * query_row, i % p.queries, key, n, parts + i * part_stride, s);
    }
  }
}

template <typename T>
void attention_merge_parts(const AttentionProblem<T>& p, const AttentionHead<T>& head, const Acc<T>* parts,
                           int64_t part_stride, int64_t chunks, int64_t chunk_stride) {
  using A = Acc<T>;
  for (int64_t row = 0; row < p.queries; ++row) {
    const A* part = parts + row * part_stride;
    A max = -kInfinity<A>, sum = A(0);
    for (int64_t i = 0; i < chunks; ++i) {
      const A chunk_max = part[i * chunk_stride];
      // A NaN in a chunk's sum reaches the result through its factor's product below.
      if (chunk_max > max) max = chunk_max;
    }
    const A origin = max == -kInfinity<A> ? A(0) : max, factor = base_2_factor(p);
    for (int64_t i = 0; i < chunks; ++i) {
      sum += exp2<A>(broadcast<A>((part[i * chunk_stride] - origin) * factor))[0] * part[i * chunk_stride + 1];
    }
    const A log_sum = log2_of_sum<A>(broadcast<A>(sum))[0];
    head.logsumexp[row] = sum == A(0) ? kInfinity<A> : max * logit_factor(p) + log_sum * static_cast<A>(kLn2);
    const A inverse = sum == A(0) ? A(0) : static_cast<A>(p.dropout ? p.rule.scale : 1.0) / sum;
    T* to = head.output + row * p.output_row;
    for_each_vector<A>(p.value_size, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      Vec<A> total{};
      for (int64_t i = 0; i < chunks; ++i) {
        const A* from = part + i * chunk_stride;
        total = fma(load(from + 2 + c, n), exp2<A>(broadcast<A>((from[0] - origin) * factor)), total);
      }
      store(to + c, total * inverse, n);
    });
  }
}

}  // namespace
}  // namespace tilewright

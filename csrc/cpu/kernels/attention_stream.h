// Attention forward for one to four queries (decoding): keys and values are read once, in place, without packing.
//
// Keys go by in blocks of a few dozen, and all queries of all heads of the group, up to four at once, pass over a block
// while it is in L1. Where there are more such rows, keys are packed after all (attention_shared_keys.h). Chunks of
// keys may be done apart; each leaves {max, sum, output} per query, merged in order afterwards.
#pragma once
#include "cpu/kernels/attention_shared_keys.h"

namespace tilewright {
namespace {

constexpr int64_t kStreamKeys = 64;
// From so many rows on that share their keys, packing these costs less than what register tiles save. Causal rows see
// no more keys than there are rows.
template <typename T>
inline bool is_worth_packing(const AttentionProblem<T>& p, int64_t rows) {
  constexpr int64_t kRows = kDepthOf<ProductElement<T>> > 1 ? 2 : 8;
  return rows >= kRows && !p.causal;
}
constexpr int64_t kStreamRows = 4;
template <int kRows>
struct RowCount {
  static constexpr int value = kRows;
};

template <typename T>
int64_t attention_stream_scratch(const AttentionProblem<T>& p, int64_t group) {
  using A = Acc<T>;
  const int64_t rows = group * p.queries;
  if (is_worth_packing<T>(p, rows)) return SharedKeysMemory<T>(p, rows, nullptr).end - static_cast<A*>(nullptr);
  return rows * padded_row<A>(p.head_size) + kStreamRows * kStreamKeys;
}

// s[r][j] = query r . key j for j < n, two keys at a time, so that what is loaded of one operand serves all of the
// other. A partial vector per pair is kept until there are as many as lanes, whose sums are then taken together.
template <int kRows, typename T>
inline void stream_logits(const Acc<T>* query, int64_t query_row, const T* key, int64_t key_row, int64_t head_size,
                          int64_t n, Acc<T>* s, int64_t s_row) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  constexpr int kTogether = 2;
  for (int64_t j = 0; j < n; j += kStep) {
    Vec<A> partial[kRows][kStep];
    for (int64_t i = 0; i < kStep; i += kTogether) {
      const T* keys[kTogether];
      // Behind the last key it is taken again rather than tested for.
      for (int t = 0; t < kTogether; ++t) keys[t] = key + smaller(j + i + t, n - 1) * key_row;
      Vec<A> sums[kRows][kTogether] = {};
      const auto step = [&](int64_t d, auto load_key) TILEWRIGHT_INLINE {
        const Vec<A> first = load_key(keys[0] + d), second = load_key(keys[1] + d);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const Vec<A> q = load(query + r * query_row + d);
          sums[r][0] = fma(q, first, sums[r][0]);
          sums[r][1] = fma(q, second, sums[r][1]);
        }
      };
      int64_t d = 0;
      for (; d + kStep <= head_size; d += kStep) step(d, [](const T* p) TILEWRIGHT_INLINE { return load(p); });
      if (d < head_size) step(d, [rest = head_size - d](const T* p) TILEWRIGHT_INLINE { return load(p, rest); });
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        partial[r][i] = sums[r][0];
        partial[r][i + 1] = sums[r][1];
      }
    }
    for (int r = 0; r < kRows; ++r) {
      store(s + r * s_row + j, fold_rows<A>(partial[r], [](Vec<A> a, Vec<A> b) TILEWRIGHT_INLINE { return a + b; }));
    }
  }
}

// output[r] (+)= weights[r][n] * values, kVectors vectors of columns at a time.
template <int kRows, int kVectors, typename T>
inline void stream_columns(const Acc<T>* weight, int64_t weight_row, const T* value, int64_t value_row, int64_t n,
                           int64_t width, Acc<T>* output, int64_t output_row) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  // Of one row, even and odd keys apart: its few chains are not enough for the latency of their fmas.
  constexpr int kParities = kRows == 1 ? 2 : 1;
  Vec<A> sums[kParities][kRows][kVectors] = {};
  const auto add = [&](int64_t j, int parity) TILEWRIGHT_INLINE {
    const T* v = value + j * value_row;
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      const int64_t left = width - i * kStep;
      const Vec<A> column = left >= kStep ? load(v + i * kStep) : load(v + i * kStep, left);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec<A> w = broadcast<A>(weight[r * weight_row + j]);
        sums[parity][r][i] = fma(w, column, sums[parity][r][i]);
      }
    }
  };
  int64_t j = 0;
  for (; j + kParities <= n; j += kParities) {
#pragma GCC unroll 2
    for (int parity = 0; parity < kParities; ++parity) add(j + parity, parity);
  }
  if (j < n) add(j, 0);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      const Vec<A> sum = kParities == 1 ? sums[0][r][i] : sums[0][r][i] + sums[kParities - 1][r][i];
      const int64_t left = smaller(kStep, width - i * kStep);
      A* out = output + r * output_row + i * kStep;
      store(out, load(out, left) + sum, left);
    }
  }
}

template <int kRows, typename T>
inline void stream_values(const Acc<T>* weight, int64_t weight_row, const T* value, int64_t value_row, int64_t n,
                          int64_t value_size, Acc<T>* output, int64_t output_row) {
  constexpr int64_t kStep = kLanes<Acc<T>>;
  constexpr int kVectors = kRows == 4 && kTileRows * kTileVectors < 16 ? 2 : 4;  // sums that fit the registers
  int64_t c = 0;
  for (; value_size - c > (kVectors - 1) * kStep; c += kVectors * kStep) {
    stream_columns<kRows, kVectors>(weight, weight_row, value + c, value_row, n, value_size - c, output + c,
                                    output_row);
  }
  for (; c < value_size; c += kStep) {
    stream_columns<kRows, 1>(weight, weight_row, value + c, value_row, n, value_size - c, output + c, output_row);
  }
}

// Masked logits s of one query and the n keys from `key` on -> weights; part is {max, sum, output[Dv]}.
template <typename T>
inline void stream_softmax(const AttentionProblem<T>& p, const AttentionHead<T>& head, int64_t row, int64_t key,
                           int64_t n, Acc<T>* part, Acc<T>* s) {
  using A = Acc<T>;
  mask_tile(p, head.mask, row, 1, key, n, s, kStreamKeys);
  const A before = part[0], block_max = reduce_max<A>(lanes_of_max(s, n));
  const A after = block_max > before ? block_max : before;
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
}

// Rows [row, row + kRows) of the group's queries, a row for each (head, query), against keys [key, key + n).
template <int kRows, typename T>
inline void stream_rows(const AttentionProblem<T>& p, const AttentionHead<T>* heads, int64_t row, int64_t key,
                        int64_t n, const Acc<T>* query, int64_t query_row, Acc<T>* parts, int64_t part_stride,
                        Acc<T>* s) {
  // Keys that are hidden from one row only must not meet its values, which may be Inf or NaN.
  if (p.causal) n = smaller(n, row % p.queries + 1 - key);
  if (n <= 0) return;
  Acc<T>* part = parts + row * part_stride;
  stream_logits<kRows>(query + row * query_row, query_row, heads[0].key + key * p.key_row, p.key_row, p.head_size, n, s,
                       kStreamKeys);
  for (int r = 0; r < kRows; ++r) {
    const int64_t i = row + r;
    stream_softmax(p, heads[i / p.queries], i % p.queries, key, n, part + r * part_stride, s + r * kStreamKeys);
  }
  stream_values<kRows>(s, kStreamKeys, heads[0].value + key * p.value_row, p.value_row, n, p.value_size, part + 2,
                       part_stride);
}

template <typename T>
void attention_stream(const AttentionProblem<T>& p, const AttentionHead<T>* heads, int64_t group, int64_t begin,
                      int64_t end, Acc<T>* parts, int64_t part_stride, Acc<T>* scratch) {
  using A = Acc<T>;
  const int64_t query_row = padded_row<A>(p.head_size), rows = group * p.queries;
  if (is_worth_packing<T>(p, rows)) {
    return attend_to_shared_keys(p, heads, group, begin, end, parts, part_stride, scratch);
  }
  A* s = scratch + rows * query_row;
  for (int64_t g = 0; g < group; ++g) {
    copy_rows(p.queries, p.head_size, heads[g].query, p.query_row, scratch + g * p.queries * query_row);
  }
  for (int64_t i = 0; i < rows; ++i) {
    A* part = parts + i * part_stride;
    part[0] = -kInfinity<A>;
    for (int64_t c = 1; c < p.value_size + 2; ++c) part[c] = A(0);
  }
  for (int64_t key = begin; key < end; key += kStreamKeys) {
    const int64_t n = smaller(kStreamKeys, end - key);
    for (int64_t row = 0; row < rows;) {
      const auto take = [&](auto count) {
        stream_rows<count.value>(p, heads, row, key, n, scratch, query_row, parts, part_stride, s);
        row += count.value;
      };
      if (rows - row >= 4 && !p.causal) {
        take(RowCount<4>{});
      } else if (rows - row >= 2 && !p.causal) {
        take(RowCount<2>{});
      } else {
        take(RowCount<1>{});
      }
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

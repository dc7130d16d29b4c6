// What the two backward kernels share: operands of the backward's products, and P and dS of one tile of queries by a
// block of keys (attention_backward.h has the formulas).
#pragma once
#include "cpu/kernels/attention_forward.h"

namespace tilewright {
namespace {

// Keys and values of one block, as right operands of elements E.
template <typename E>
struct KeyBlock {
  E* keys_transposed;    // panels of [D, keys]
  E* values_transposed;  // panels of [Dv, keys]
  E* keys;               // panels of [keys, D]
  SumOf<E>* end;

  KeyBlock(int64_t head_size, int64_t value_size, SumOf<E>* memory)
      : keys_transposed(reinterpret_cast<E*>(memory)),
        values_transposed(keys_transposed + elements_of<E>(head_size) * kMaxKeyBlock),
        keys(values_transposed + elements_of<E>(value_size) * kMaxKeyBlock),
        end(reinterpret_cast<SumOf<E>*>(keys + packed_size<E>(elements_of<E>(kMaxKeyBlock), head_size))) {}

  template <typename T>
  void pack(const AttentionProblem<T>& p, const AttentionHead<T>& head, int64_t key, int64_t n) const {
    const T* from = head.key + key * p.key_row;
    pack_right(p.head_size, n, from, 1, p.key_row, keys_transposed);
    pack_right(p.value_size, n, head.value + key * p.value_row, 1, p.value_row, values_transposed);
    pack_right(n, p.head_size, from, p.key_row, 1, keys);
  }
};

// Queries [begin, begin + rows) of one head, as left operands of elements E.
template <typename E, typename A = SumOf<E>>
struct QueryRows {
  int64_t query_row, output_row;
  E* query;        // [rows][query_row]
  E* grad_output;  // [rows][output_row]
  A* delta;        // [rows]

  QueryRows(int64_t rows, int64_t head_size, int64_t value_size, A* memory)
      : query_row(padded_row<E>(head_size)),
        output_row(padded_row<E>(value_size)),
        query(reinterpret_cast<E*>(memory)),
        grad_output(query + rows * query_row),
        delta(memory + rows * (query_row + output_row)) {}
  A* end(int64_t rows) const { return delta + round_up(rows, kLanes<A>); }

  // saved_delta: of all queries, or null.
  template <typename T>
  void prepare(const AttentionProblem<T>& p, const AttentionHead<T>& head, const T* dout, int64_t dout_row,
               const A* saved_delta, int64_t begin, int64_t rows) const {
    copy_rows(rows, p.head_size, head.query + begin * p.query_row, p.query_row, query);
    copy_rows(rows, p.value_size, dout + begin * dout_row, dout_row, grad_output);
    for (int64_t r = 0; r < rows; ++r) {
      if (saved_delta != nullptr) {
        delta[r] = saved_delta[begin + r];
        continue;
      }
      const T* d = dout + (begin + r) * dout_row;
      const T* out = head.output + (begin + r) * p.output_row;
      delta[r] = sum_terms<A>(
          p.value_size, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE { return load(d + c, n) * load(out + c, n); });
    }
  }
};

// Probabilities and logit gradients of a block of queries by a block of keys.
template <typename A>
struct GradientTiles {
  int64_t row;
  A* probability;     // [kQueryBlock][row]; with dropout P * keep
  A* logit_gradient;  // [kQueryBlock][row]

  GradientTiles(int64_t key_block, A* memory)
      : row(key_block + kLanes<A>), probability(memory), logit_gradient(memory + kQueryBlock * row) {}
  A* end() const { return logit_gradient + kQueryBlock * row; }
};

// P and dS from S and dP, whole vectors; columns hidden by masks have S = -Inf, so P = dS = 0.
template <typename P, bool kDropout, typename A>
inline void logit_gradients(int64_t rows, int64_t n, A* s, A* dp, int64_t s_row, A factor, const A* logsumexp,
                            const A* delta, const TileKeepBits& keep, A keep_scale) {
  const Vec<A> scale = broadcast<A>(keep_scale);
  for (int64_t r = 0; r < rows; ++r) {
    A* p_at = s + r * s_row;
    A* dp_at = dp + r * s_row;
    const Vec<A> base = broadcast<A>(logsumexp[r]), d = broadcast<A>(delta[r]);
    // Such a logsumexp is the largest logit itself, rounded. A logit rounded otherwise here must not pass it.
    const bool round_first = !(logsumexp[r] < kLargeLogit<A> && logsumexp[r] > -kLargeLogit<A>);
    for (int64_t c = 0; round_first && c < n; c += kLanes<A>) {
      const Vec<A> logit = rounded(load(p_at + c) * factor);
      store(p_at + c, logit > base ? base : logit);
    }
    const Vec<A> scale_of_s = broadcast<A>(round_first ? A(1) : factor);
    for (int64_t c = 0; c < n; c += kLanes<A>) {
      // The difference first: a large logsumexp must not be rounded once more. It is +Inf where nothing is attended to,
      // so -Inf never meets -Inf.
      const Vec<A> p = exp2_for<P>(fma(load(p_at + c), scale_of_s, -base) * static_cast<A>(kLog2E));
      if constexpr (kDropout) {
        const Vec<A> kept = lanes_where(keep.at(r, c), scale);
        store(p_at + c, p * kept);
        store(dp_at + c, p * (load(dp_at + c) * kept - d));
      } else {
        store(p_at + c, p);
        store(dp_at + c, p * (load(dp_at + c) - d));
      }
    }
  }
}

// P and dS of queries [row, row + rows), one tile, and keys [key, key + n); row 0 of the query rows is query first_row.
// Returns the columns that may differ from zero; the others, up to n in whole vectors, are not written. P: what P and
// dS are as good as (exp2_for).
template <typename P, typename T>
inline ColumnRange gradient_tile(const AttentionProblem<T>& p, const AttentionHead<T>& head,
                                 const QueryRows<ProductElement<T>>& queries, int64_t first_row,
                                 const KeyBlock<ProductElement<T>>& keys, int64_t row, int64_t rows, int64_t key,
                                 int64_t n, Acc<T>* s, Acc<T>* dp, int64_t s_row) {
  using A = Acc<T>;
  using E = ProductElement<T>;
  const ColumnRange visit = columns_to_visit(p, head.mask, row, rows, key, n);
  const int64_t width = visit.end - visit.begin, r = row - first_row;
  if (width == 0) return visit;
  s += visit.begin;
  dp += visit.begin;
  multiply_tile<E>(rows, width, p.head_size, queries.query + r * queries.query_row, queries.query_row, 1,
                   packed_operand(keys.keys_transposed + visit.begin * elements_of<E>(p.head_size), p.head_size), s,
                   s_row, false);
  mask_tile(p, head.mask, row, rows, key + visit.begin, width, s, s_row);
  multiply_tile<E>(rows, width, p.value_size, queries.grad_output + r * queries.output_row, queries.output_row, 1,
                   packed_operand(keys.values_transposed + visit.begin * elements_of<E>(p.value_size), p.value_size),
                   dp, s_row, false);
  // The product left the columns behind width unwritten; P there is 0 and must not meet a NaN.
  if (width % kLanes<A> != 0) {
    const int64_t last = width / kLanes<A> * kLanes<A>;
    for (int64_t i = 0; i < rows; ++i) {
      store(dp + i * s_row + last, first_lanes<A>(load(dp + i * s_row + last), width - last, Vec<A>{}));
    }
  }
  TileKeepBits keep;
  if (p.dropout) keep.fill(p, head.index, row, rows, key + visit.begin, width);
  const auto finish = p.dropout ? logit_gradients<P, true, A> : logit_gradients<P, false, A>;
  finish(rows, width, s, dp, s_row, logit_factor(p), head.logsumexp + row, queries.delta + r, keep,
         static_cast<A>(p.dropout ? p.rule.scale : 1.0));
  return visit;
}

}  // namespace
}  // namespace tilewright

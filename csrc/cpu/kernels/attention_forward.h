// Attention forward, block by block (Dao et al., "FlashAttention", 2022; Milakov & Gimelshein, "Online normalizer
// calculation for softmax", 2018): no row of logits ever exists as a whole.
//
//            keys 0 ......... Sk        for a block of ~70 queries, for each block of keys, for each tile of queries:
//   queries  +-------+-------+--          S = Q K^T           tile x key block, in L1
//   tile 0   |#######|       |            P = exp2(S - max)   max and sum of a row so far; when the max rose, the
//   tile 1   |#######|       |            O = O + P V         row's output and sum are scaled down first
//            +-------+-------+--
// Blocks above the diagonal (causal) and panels that the mask hides from a whole tile are skipped.
#pragma once
#include "cpu/kernels/attention_logits.h"

namespace tilewright {
namespace {

// Packed keys: panels of the right operand K^T [D, Sk]; behind them packed values: per key block, panels of [keys, Dv].
template <typename E>
inline int64_t packed_keys_size(int64_t head_size, int64_t keys) {
  return packed_size<E>(elements_of<E>(head_size), keys);
}

template <typename T>
int64_t attention_packed_size(const AttentionProblem<T>& p) {
  using E = ProductElement<T>;
  static_assert(sizeof(E) == sizeof(Acc<T>));  // memory is counted in accumulators
  return packed_keys_size<E>(p.head_size, p.keys) + elements_of<E>(p.keys) * round_up(p.value_size, kTileCols<E>);
}

template <typename T>
int64_t attention_key_block(const AttentionProblem<T>& p) {
  return key_block_of(p.head_size, p.value_size);
}

template <typename T>
void attention_pack(const AttentionProblem<T>& p, const T* key, const T* value, int64_t begin, int64_t end,
                    Acc<T>* packed) {
  using E = ProductElement<T>;
  const int64_t block = attention_key_block(p), values_row = round_up(p.value_size, kTileCols<E>);
  E* keys = reinterpret_cast<E*>(packed);
  E* values = keys + packed_keys_size<E>(p.head_size, p.keys);
  for (int64_t at = begin; at < smaller(end, p.visible_keys()); at += block) {
    const int64_t n = smaller(block, p.visible_keys() - at);
    pack_right(p.head_size, n, key + at * p.key_row, 1, p.key_row, keys + at * elements_of<E>(p.head_size));
    pack_right(n, p.value_size, value + at * p.value_row, p.value_row, 1, values + at / kDepthOf<E> * values_row);
  }
}

// log2 of x >= 1, by atanh's series around the mantissa in [sqrt(1/2), sqrt(2)): its argument is below 0.172, so five
// terms (eleven for float64) are exact to rounding.
template <typename A>
inline Vec<A> log2_of_sum(Vec<A> x) {
  constexpr bool kFloat = sizeof(A) == 4;
  constexpr int kMantissa = kFloat ? 23 : 52, kTerms = kFloat ? 5 : 11;
  using Bits = decltype(x == x);
  using Bit = __typeof__(Bits{}[0] + 0);
  constexpr Bit kSqrtHalf = kFloat ? static_cast<Bit>(0x3f3504f3) : static_cast<Bit>(0x3fe6a09e667f3bcdll);
  const Bits bits = bit_cast<Bits>(x);
  const Bits exponent = (bits - kSqrtHalf) >> kMantissa;
  const Vec<A> mantissa = bit_cast<Vec<A>>(bits - (exponent << kMantissa));
  const Vec<A> f = (mantissa - A(1)) / (mantissa + A(1));
  const Vec<A> square = f * f;
  Vec<A> series = broadcast<A>(A(2 / kLn2) / A(2 * kTerms - 1));
#pragma GCC unroll 16
  for (int i = kTerms - 2; i >= 0; --i) series = fma(series, square, broadcast<A>(A(2 / kLn2) / A(2 * i + 1)));
  return fma(series, f, __builtin_convertvector(exponent, Vec<A>));
}

// Working memory of one block of queries, for products of elements E.
template <typename E, typename A = SumOf<E>>
struct ForwardBlock {
  int64_t query_row, output_row, logit_row;
  E* query;   // [kQueryBlock][query_row]
  A* output;  // [kQueryBlock][output_row]
  A* logits;  // [kTileRows][logit_row]
  A* max;     // [kQueryBlock + lanes]: largest s so far
  A* sum;     // [kQueryBlock + lanes]: sum of the exponentials relative to max so far

  ForwardBlock(int64_t head_size, int64_t value_size, A* memory)
      : query_row(padded_row<E>(head_size)),
        output_row(padded_row<A>(value_size)),
        logit_row(key_block_of(head_size, value_size) + kLanes<A>),
        query(reinterpret_cast<E*>(memory)),
        output(memory + kQueryBlock * query_row),
        logits(output + kQueryBlock * output_row),
        max(logits + kTileRows * logit_row),
        sum(max + kQueryBlock + kLanes<A>) {}
  A* end() const { return sum + kQueryBlock + kLanes<A>; }
};

template <typename T>
int64_t attention_forward_scratch(const AttentionProblem<T>& p) {
  return ForwardBlock<ProductElement<T>>(p.head_size, p.value_size, nullptr).end() - static_cast<Acc<T>*>(nullptr);
}

template <typename A>
inline Vec<A> lanes_of_max(const A* s, int64_t n) {
  constexpr int64_t kStep = kLanes<A>;
  Vec<A> max0 = broadcast<A>(-kInfinity<A>), max1 = max0;
  int64_t c = 0;
  for (; c + kStep < n; c += 2 * kStep) {
    max0 = max(load(s + c), max0);
    max1 = max(load(s + c + kStep), max1);
  }
  if (c < n) max0 = max(load(s + c), max0);
  return max(max0, max1);
}

// weights = exponential(s) over whole vectors, as the row of a left operand of elements E, which may lie where s does;
// returns the lanes of their sum. P: what the exponentials are as good as (exp2_for).
template <bool kScaled, typename P, typename E, typename A>
inline Vec<A> exponentials_of(const A* s, int64_t n, A factor_of_s, A base_of_row, E* weights) {
  using Traits = ElementTraits<E>;
  constexpr int64_t kStep = kLanes<A>;
  const Vec<A> factor = broadcast<A>(factor_of_s), base = broadcast<A>(base_of_row);
  Vec<A> sum0{}, sum1{};
  int64_t c = 0;
  for (; c + kStep < n; c += 2 * kStep) {
    const Vec<A> p0 = exponential<kScaled, P>(load(s + c), factor, base);
    const Vec<A> p1 = exponential<kScaled, P>(load(s + c + kStep), factor, base);
    Traits::store_along(weights, c, p0);
    Traits::store_along(weights, c + kStep, p1);
    sum0 += p0;
    sum1 += p1;
  }
  if (c < n) {
    const Vec<A> p0 = exponential<kScaled, P>(load(s + c), factor, base);
    Traits::store_along(weights, c, p0);
    sum0 += p0;
  }
  clear_behind(weights, n);
  return sum0 + sum1;
}

// The exponentials of s relative to max; returns the lanes of their sum. A max so large that its product with factor is
// rounded to more than an exponent can take is subtracted first.
template <typename P, typename E, typename A>
inline Vec<A> exponentials(const A* s, int64_t n, bool scaled, A factor, A max, E* weights) {
  const A base = max * factor;
  const bool rounded_away = !(base < kLargeLogit<A> && base > -kLargeLogit<A>);
  return scaled || rounded_away ? exponentials_of<true, P>(s, n, factor, max, weights)
                                : exponentials_of<false, P>(s, n, factor, base, weights);
}

// Turns the masked logits of a tile into probabilities relative to each row's max, and brings max, sum and output of
// the rows up to date. first: nothing has been summed yet. factor: from s to logits in base 2. P: elements of the
// product that the probabilities enter. W: what they are stored as, in place: P, or A where they have to be dropped
// first.
template <typename P, typename W, typename A>
inline void softmax_tile(int64_t rows, int64_t n, A* s, int64_t s_row, bool scaled, A factor, A* max, A* sum, A* output,
                         int64_t output_row, int64_t value_size, bool first) {
  constexpr int64_t kStep = kLanes<A>;
  for (int64_t row = 0; row < rows; row += kStep) {
    const int64_t group = smaller(kStep, rows - row);
    A shrink[kStep], origins[kStep];
    Vec<A> lanes[kStep] = {};
    for (int64_t r = 0; r < group; ++r) lanes[r] = lanes_of_max(s + (row + r) * s_row, n);
    const Vec<A> before = load(max + row, group);
    const Vec<A> block_max =
        fold_rows<A>(lanes, [](Vec<A> a, Vec<A> b) TILEWRIGHT_INLINE { return tilewright::max(a, b); });
    const Vec<A> after = tilewright::max(block_max, before);
    // A row with nothing attended to yet keeps -Inf as its max; measured from 0 its probabilities are 0, not NaN.
    const Vec<A> origin = after == -kInfinity<A> ? Vec<A>{} : after, shrinks = exp2<A>((before - origin) * factor);
    store(max + row, after, group);
    store(origins, origin);
    store(shrink, shrinks);
    for (int64_t r = 0; r < group; ++r) {
      A* at = s + (row + r) * s_row;
      lanes[r] = exponentials<P>(at, n, scaled, factor, origins[r], reinterpret_cast<W*>(at));
    }
    Vec<A> sums = fold_rows<A>(lanes, [](Vec<A> a, Vec<A> b) TILEWRIGHT_INLINE { return a + b; });
    if (!first) sums = fma(load(sum + row, group), shrinks, sums);
    store(sum + row, sums, group);
    for (int64_t r = 0; !first && r < group; ++r) {
      if (shrink[r] == A(1)) continue;
      A* out = output + (row + r) * output_row;
      for (int64_t c = 0; c < value_size; c += kStep) store(out + c, load(out + c) * shrink[r]);
    }
  }
}

template <typename E, typename A>
inline void drop_probabilities(const TileKeepBits& keep, int64_t rows, int64_t n, A* s, int64_t s_row) {
  const Vec<A> one = broadcast<A>(1);
  for (int64_t r = 0; r < rows; ++r) {
    const A* p = s + r * s_row;
    E* kept = reinterpret_cast<E*>(s + r * s_row);
    for (int64_t c = 0; c < n; c += kLanes<A>) {
      ElementTraits<E>::store_along(kept, c, load(p + c) * lanes_where(keep.at(r, c), one));
    }
    clear_behind(kept, n);
  }
}

// output = O / sum; logsumexp.
template <typename T>
inline void finish_rows(const AttentionProblem<T>& p, const AttentionHead<T>& head, int64_t row, int64_t rows,
                        const ForwardBlock<ProductElement<T>>& block) {
  using A = Acc<T>;
  for (int64_t r = 0; r < rows; r += kLanes<A>) {
    const int64_t n = smaller(kLanes<A>, rows - r);
    const Vec<A> sum = load(block.sum + r), none = broadcast<A>(kInfinity<A>);
    store(head.logsumexp + row + r,
          sum == A(0) ? none : load(block.max + r) * logit_factor(p) + log2_of_sum<A>(sum) * static_cast<A>(kLn2), n);
    store(block.sum + r, sum == A(0) ? Vec<A>{} : static_cast<A>(p.dropout ? p.rule.scale : 1.0) / sum);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const A* from = block.output + r * block.output_row;
    T* to = head.output + (row + r) * p.output_row;
    const A factor = block.sum[r];
    for_each_vector<A>(p.value_size,
                       [=](int64_t c, int64_t n) TILEWRIGHT_INLINE { store(to + c, load(from + c) * factor, n); });
  }
}

// Probabilities may be as rough as the product they enter, but where a mask finer than it wants its gradient.
template <typename E, typename T>
inline auto softmax_for(const AttentionProblem<T>& p) {
  using A = Acc<T>;
  if (p.mask_kind == MaskKind::kAccumulator) return p.dropout ? softmax_tile<A, A, A> : softmax_tile<A, E, A>;
  return p.dropout ? softmax_tile<E, A, A> : softmax_tile<E, E, A>;
}

template <typename T>
void attention_forward_block(const AttentionProblem<T>& p, const AttentionHead<T>& head, int64_t tile_begin,
                             int64_t tile_end, const Acc<T>* packed, const ForwardBlock<ProductElement<T>>& block) {
  using A = Acc<T>;
  using E = ProductElement<T>;
  const int64_t tiles = tile_count(p.queries), row_begin = tile_edge(tile_begin, tiles, p.queries);
  const int64_t block_rows = tile_edge(tile_end, tiles, p.queries) - row_begin;
  const int64_t values_row = round_up(p.value_size, kTileCols<E>), key_block = attention_key_block(p);
  const E* keys = reinterpret_cast<const E*>(packed);
  const E* values = keys + packed_keys_size<E>(p.head_size, p.keys);
  copy_rows(block_rows, p.head_size, head.query + row_begin * p.query_row, p.query_row, block.query);
  bool started[kTilesPerBlock] = {};
  for (int64_t r = 0; r < block_rows + kLanes<A>; ++r) {
    block.max[r] = -kInfinity<A>;
    block.sum[r] = A(0);
  }
  TileKeepBits keep;
  const bool scaled = has_scaled_logits(p);
  const A factor = base_2_factor(p);
  const int64_t key_end = p.causal ? smaller(p.keys, row_begin + block_rows) : p.keys, visible = p.visible_keys();
  for (int64_t key = 0; key < key_end; key += key_block) {
    const int64_t block_keys = smaller(key_block, visible - key);
    for (int64_t t = tile_begin; t < tile_end; ++t) {
      const int64_t row = tile_edge(t, tiles, p.queries), rows = tile_edge(t + 1, tiles, p.queries) - row;
      const int64_t r = row - row_begin;
      const ColumnRange visit = columns_to_visit(p, head.mask, row, rows, key, block_keys);
      const int64_t n = visit.end - visit.begin, first_key = key + visit.begin;
      if (n == 0) continue;
      bool& has_started = started[t - tile_begin];
      multiply_tile<E>(rows, n, p.head_size, block.query + r * block.query_row, block.query_row, 1,
                       packed_operand(keys + first_key * elements_of<E>(p.head_size), p.head_size), block.logits,
                       block.logit_row, false);
      mask_tile(p, head.mask, row, rows, first_key, n, block.logits, block.logit_row);
      const auto softmax = softmax_for<E>(p);
      softmax(rows, n, block.logits, block.logit_row, scaled, factor, block.max + r, block.sum + r,
              block.output + r * block.output_row, block.output_row, p.value_size, !has_started);
      if (p.dropout) {
        keep.fill(p, head.index, row, rows, first_key, n);
        drop_probabilities<E>(keep, rows, n, block.logits, block.logit_row);
      }
      const RightOperand<E> right = packed_operand(values + key / kDepthOf<E> * values_row, block_keys);
      multiply_tile<E>(rows, p.value_size, n, reinterpret_cast<const E*>(block.logits), block.logit_row, 1,
                       right.from(visit.begin / kDepthOf<E>), block.output + r * block.output_row, block.output_row,
                       has_started);
      has_started = true;
    }
  }
  for (int64_t t = tile_begin; t < tile_end; ++t) {
    if (started[t - tile_begin]) continue;
    const int64_t r = tile_edge(t, tiles, p.queries) - row_begin;
    const int64_t rows = tile_edge(t + 1, tiles, p.queries) - row_begin - r;
    A* out = block.output + r * block.output_row;
    for (int64_t c = 0; c < rows * block.output_row; c += kLanes<A>) store(out + c, Vec<A>{});
  }
  finish_rows(p, head, row_begin, block_rows, block);
}

template <typename T>
void attention_forward(const AttentionProblem<T>& p, const AttentionHead<T>& head, int64_t tile_begin, int64_t tile_end,
                       const Acc<T>* packed, Acc<T>* scratch) {
  const TileUnitScope unit;
  const ForwardBlock<ProductElement<T>> block(p.head_size, p.value_size, scratch);
  for (int64_t t = tile_begin; t < tile_end; t += kTilesPerBlock) {
    attention_forward_block(p, head, t, smaller(t + kTilesPerBlock, tile_end), packed, block);
  }
}

}  // namespace
}  // namespace tilewright

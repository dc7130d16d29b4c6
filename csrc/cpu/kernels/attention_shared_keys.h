// Attention forward for few queries of several heads that share their keys (decoding with grouped heads): the rows of
// all these heads are one left operand, so a block of keys and values is packed once and multiplied by register tiles.
//
//             keys  key ... key + n      for each block of keys, while its panels are in L2:
//   head 0  +--------------------+         S = Q K^T    rows of whole heads, up to a tile's
//   head 1  |   one tile, L1     |         mask, max, exponentials as in attention_forward.h
//    ...    +--------------------+         O = O + P V
#pragma once
#include "cpu/kernels/attention_forward.h"

namespace tilewright {
namespace {

template <typename T>
struct SharedKeysMemory {
  using A = Acc<T>;
  using E = ProductElement<T>;
  int64_t query_row, output_row, logit_row, block;
  E* query;   // [rows][query_row]
  E* keys;    // panels of [D, block]
  E* values;  // panels of [block, Dv]
  A* logits;  // [kTileRows][logit_row]
  A* output;  // [rows][output_row]
  A* max;     // [rows + lanes]
  A* sum;     // [rows + lanes]
  A* end;

  SharedKeysMemory(const AttentionProblem<T>& p, int64_t rows, A* memory)
      : query_row(padded_row<E>(p.head_size)),
        output_row(padded_row<A>(p.value_size)),
        logit_row(kMaxKeyBlock + kLanes<A>),
        block(attention_key_block(p)),
        query(reinterpret_cast<E*>(memory)),
        keys(query + rows * query_row),
        values(keys + packed_keys_size<E>(p.head_size, block)),
        logits(reinterpret_cast<A*>(values + packed_size<E>(elements_of<E>(block), p.value_size))),
        output(logits + kTileRows * logit_row),
        max(output + rows * output_row),
        sum(max + round_up(rows, kLanes<A>) + kLanes<A>),
        end(sum + round_up(rows, kLanes<A>) + kLanes<A>) {}
};

// Heads [first, last) of the group against the n keys from `key` on, which are packed.
template <typename T>
void attend_to_packed_keys(const AttentionProblem<T>& p, const AttentionHead<T>* heads, int64_t first, int64_t last,
                           int64_t key, int64_t n, bool started, const SharedKeysMemory<T>& m) {
  using A = Acc<T>;
  using E = ProductElement<T>;
  const int64_t row = first * p.queries, rows = (last - first) * p.queries;
  A* const output = m.output + row * m.output_row;
  multiply_tile<E>(rows, n, p.head_size, m.query + row * m.query_row, m.query_row, 1,
                   packed_operand(m.keys, p.head_size), m.logits, m.logit_row, false);
  const auto logits_of = [&](int64_t head) { return m.logits + (head - first) * p.queries * m.logit_row; };
  for (int64_t g = first; g < last; ++g) mask_tile(p, heads[g].mask, 0, p.queries, key, n, logits_of(g), m.logit_row);
  softmax_for<E>(p)(rows, n, m.logits, m.logit_row, has_scaled_logits(p), base_2_factor(p), m.max + row, m.sum + row,
                    output, m.output_row, p.value_size, !started);
  for (int64_t g = first; p.dropout && g < last; ++g) {
    TileKeepBits keep;
    keep.fill(p, heads[g].index, 0, p.queries, key, n);
    drop_probabilities<E>(keep, p.queries, n, logits_of(g), m.logit_row);
  }
  multiply_tile<E>(rows, p.value_size, n, reinterpret_cast<const E*>(m.logits), m.logit_row, 1,
                   packed_operand(m.values, n), output, m.output_row, started);
}

// As attention_stream: keys [begin, end), {max, sum, output[Dv]} of each (head, query) in parts.
template <typename T>
void attend_to_shared_keys(const AttentionProblem<T>& p, const AttentionHead<T>* heads, int64_t group, int64_t begin,
                           int64_t end, Acc<T>* parts, int64_t part_stride, Acc<T>* scratch) {
  using A = Acc<T>;
  const TileUnitScope unit;
  const int64_t rows = group * p.queries, tile_heads = larger(1, kTileRows / p.queries);
  const SharedKeysMemory<T> m(p, rows, scratch);
  for (int64_t g = 0; g < group; ++g) {
    copy_rows(p.queries, p.head_size, heads[g].query, p.query_row, m.query + g * p.queries * m.query_row);
  }
  for (int64_t i = 0; i < rows; ++i) {
    m.max[i] = -kInfinity<A>;
    m.sum[i] = A(0);
  }
  for (int64_t key = begin; key < end; key += m.block) {
    const int64_t n = smaller(m.block, end - key);
    pack_right(p.head_size, n, heads[0].key + key * p.key_row, 1, p.key_row, m.keys);
    pack_right(n, p.value_size, heads[0].value + key * p.value_row, p.value_row, 1, m.values);
    for (int64_t g = 0; g < group; g += tile_heads) {
      attend_to_packed_keys(p, heads, g, smaller(g + tile_heads, group), key, n, key > begin, m);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    A* part = parts + i * part_stride;
    const A* from = m.output + i * m.output_row;
    part[0] = m.max[i];
    part[1] = m.sum[i];
    for_each_vector<A>(p.value_size,
                       [=](int64_t c, int64_t n) TILEWRIGHT_INLINE { store(part + 2 + c, load(from + c), n); });
  }
}

}  // namespace
}  // namespace tilewright

// Gradient of an additive mask: d mask = dS, summed over whatever the mask is broadcast over. P and dP are made once
// more (two products) so that a mask shared by many heads needs no [Sq, Sk] memory per head: the caller goes through
// the heads of one mask in order.
#pragma once
#include "cpu/kernels/attention_gradient_tile.h"

namespace tilewright {
namespace {

template <typename E, typename A = SumOf<E>>
struct MaskGradientMemory {
  QueryRows<E> queries;
  KeyBlock<E> keys;
  GradientTiles<A> tiles;

  MaskGradientMemory(int64_t rows, int64_t head_size, int64_t value_size, A* memory)
      : queries(rows, head_size, value_size, memory),
        keys(head_size, value_size, queries.end(rows)),
        tiles(key_block_of(head_size, value_size), keys.end) {}
};

template <typename T>
int64_t attention_mask_scratch(const AttentionProblem<T>& p, int64_t chunk_queries) {
  using A = Acc<T>;
  return MaskGradientMemory<ProductElement<T>>(chunk_queries, p.head_size, p.value_size, nullptr).tiles.end() -
         static_cast<A*>(nullptr);
}

// Makes P and dS of queries [begin, end) with all keys, tile by tile, and calls step(row, key, n, ds) for every row of
// a tile: ds holds the n gradients from key on.
template <typename T, typename Step>
inline void for_each_gradient_row(const AttentionBackwardProblem<T>& problem, const AttentionHead<T>& head,
                                  const T* grad_output, const Acc<T>* delta, int64_t begin, int64_t end,
                                  Acc<T>* scratch, const Step& step) {
  const TileUnitScope unit;
  const AttentionProblem<T>& p = problem.forward;
  const MaskGradientMemory<ProductElement<T>> m(end - begin, p.head_size, p.value_size, scratch);
  const int64_t block = attention_key_block(p), s_row = m.tiles.row, tiles = tile_count(end - begin);
  m.queries.prepare(p, head, grad_output, problem.grad_output_row, delta, begin, end - begin);
  for (int64_t key = 0; key < p.keys; key += block) {
    const int64_t n = smaller(block, p.keys - key);
    m.keys.pack(p, head, key, n);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = begin + tile_edge(t, tiles, end - begin);
      const int64_t rows = begin + tile_edge(t + 1, tiles, end - begin) - row;
      const ColumnRange visit = gradient_tile<Acc<T>>(p, head, m.queries, begin, m.keys, row, rows, key, n,
                                                      m.tiles.probability, m.tiles.logit_gradient, s_row);
      for (int64_t r = 0; r < rows; ++r) {
        step(row + r, key + visit.begin, visit.end - visit.begin, m.tiles.logit_gradient + r * s_row + visit.begin);
      }
    }
  }
}

template <typename A>
inline A row_sum(const A* row, int64_t n) {
  return sum_terms<A>(n, [=](int64_t c, int64_t lanes) TILEWRIGHT_INLINE { return load(row + c, lanes); });
}

// While delta is 0, dS is P * dP.
template <typename T>
void attention_row_delta(const AttentionBackwardProblem<T>& problem, const AttentionHead<T>& head, const T* grad_output,
                         int64_t begin, int64_t end, Acc<T>* delta, Acc<T>* scratch) {
  for_each_gradient_row(problem, head, grad_output, delta, begin, end, scratch,
                        [=](int64_t row, int64_t, int64_t n, const Acc<T>* ds) { delta[row] += row_sum(ds, n); });
}

template <typename T>
void attention_mask_gradient(const AttentionBackwardProblem<T>& problem, const AttentionHead<T>& head,
                             const T* grad_output, const Acc<T>* delta, int64_t begin, int64_t end, Acc<T>* grad_mask,
                             int64_t grad_row, int64_t grad_col, Acc<T>* scratch) {
  using A = Acc<T>;
  for_each_gradient_row(problem, head, grad_output, delta, begin, end, scratch,
                        [=](int64_t row, int64_t key, int64_t n, const A* ds) {
                          A* grad = grad_mask + row * grad_row + key * grad_col;
                          if (grad_col == 0) {
                            *grad += row_sum(ds, n);
                            return;
                          }
                          for_each_vector<A>(n, [=](int64_t c, int64_t lanes) TILEWRIGHT_INLINE {
                            store(grad + c, load(grad + c, lanes) + load(ds + c, lanes), lanes);
                          });
                        });
}

}  // namespace
}  // namespace tilewright

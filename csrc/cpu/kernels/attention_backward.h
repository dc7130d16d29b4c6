// Attention backward, block by block. With P = e^(S - logsumexp) made anew from the saved logsumexp:
//   delta = rowsum(dO * O)     dV = P^T dO      dP = dO V^T     dS = P * (dP - delta)
//   dQ = scale * dS K          dK = scale * dS^T Q
// and with dropout, where keep is 0 or 1 / (1 - p): dV = (P keep)^T dO, dS = P * (dP keep - delta).
//
// For each block of keys, all queries pass by in blocks of ~70; dK and dV of the block grow in L2, and so does dQ if
// the head is short. Five products per block, each a register tile with its right operand copied or transposed
// beforehand:
//   S, dP: queries x keys (right K^T, V^T)     dQ: queries x D (right K)     dV, dK: keys x Dv, D (right dO, Q; the
//   left operands P^T and dS^T are read down the columns of P and dS)
// Where products take pairs of bfloat16, P and dS are rounded first: dS along its rows for dQ, both across pairs of
// rows for dK and dV, for which dO and Q are packed once more.
#pragma once
#include "cpu/kernels/attention_backward_operands.h"

namespace tilewright {
namespace {

template <typename A>
inline void clear_columns(int64_t rows, int64_t begin, int64_t end, A* s, int64_t s_row) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = begin; c < end; c += kLanes<A>) store(s + r * s_row + c, Vec<A>{});
  }
}

// grad[keys, size] += left right over the rows of one query block; left is P^T or dS^T. Causal: key k meets rows from
// query k on only (`skipped` elements less).
template <typename E>
inline void accumulate_key_gradient(int64_t n, int64_t rows, int64_t hidden_rows, LeftOperand<E> left,
                                    RightOperand<E> right, int64_t size, SumOf<E>* grad, int64_t grad_row) {
  constexpr int64_t kValues = kDepthOf<E> * kStepOf<E>;
  const int64_t tiles = tile_count(n);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t k = tile_edge(t, tiles, n), tile_keys = tile_edge(t + 1, tiles, n) - k;
    const int64_t skipped = larger(0, hidden_rows + k) / kValues * kStepOf<E>;
    if (skipped * kDepthOf<E> >= rows) continue;
    multiply_tile<E>(tile_keys, size, rows - skipped * kDepthOf<E>, left.data + k * left.row + skipped * left.col,
                     left.row, left.col, right.from(skipped), grad + k * grad_row, grad_row, true);
  }
}

template <typename E, typename A = SumOf<E>>
struct BackwardMemory {
  QueryRows<E> queries;
  KeyBlock<E> keys;
  GradientTiles<A> tiles;
  BackwardOperands<E> operands;
  int64_t query_row, output_row;
  A *grad_query, *grad_key, *grad_value;  // [Sq][query_row], [chunk_keys][query_row], [chunk_keys][output_row]
  A* end;

  BackwardMemory(int64_t rows, int64_t head_size, int64_t value_size, int64_t chunk_keys, A* memory)
      : queries(rows, head_size, value_size, memory),
        keys(head_size, value_size, queries.end(rows)),
        tiles(key_block_of(head_size, value_size), keys.end),
        operands(rows, head_size, value_size, tiles.row, tiles.end()),
        query_row(padded_row<A>(head_size)),
        output_row(padded_row<A>(value_size)),
        grad_query(operands.end),
        grad_key(grad_query + rows * query_row),
        grad_value(grad_key + chunk_keys * query_row),
        end(grad_value + chunk_keys * output_row) {}
};

template <typename T>
int64_t attention_backward_scratch(const AttentionProblem<T>& p, int64_t chunk_keys) {
  using Memory = BackwardMemory<ProductElement<T>>;
  return Memory(p.queries, p.head_size, p.value_size, chunk_keys, nullptr).end - static_cast<Acc<T>*>(nullptr);
}

// One head's queries against keys [key, key + n).
template <typename T>
void backward_key_block(const AttentionProblem<T>& p, const AttentionHead<T>& head,
                        const BackwardMemory<ProductElement<T>>& m, int64_t key, int64_t n, bool wants_query,
                        Acc<T>* grad_key, Acc<T>* grad_value) {
  using A = Acc<T>;
  using E = ProductElement<T>;
  const int64_t tiles = tile_count(p.queries), s_row = m.tiles.row;
  for (int64_t t = 0; t < tiles; t += kTilesPerBlock) {
    const int64_t tile_end = smaller(t + kTilesPerBlock, tiles);
    const int64_t row_begin = tile_edge(t, tiles, p.queries), row_end = tile_edge(tile_end, tiles, p.queries);
    const int64_t width = p.causal ? smaller(n, row_end - key) : n;
    if (width <= 0) continue;
    bool any = false;
    for (int64_t i = t; i < tile_end; ++i) {
      const int64_t row = tile_edge(i, tiles, p.queries), rows = tile_edge(i + 1, tiles, p.queries) - row;
      A* s = m.tiles.probability + (row - row_begin) * s_row;
      A* ds = m.tiles.logit_gradient + (row - row_begin) * s_row;
      const ColumnRange visit = gradient_tile<E>(p, head, m.queries, 0, m.keys, row, rows, key, width, s, ds, s_row);
      any |= visit.end > visit.begin;
      A* const written[] = {s, ds};
      for (A* tile : written) {
        clear_columns(rows, 0, visit.begin, tile, s_row);
        clear_columns(rows, round_up(visit.end, kLanes<A>), width, tile, s_row);
      }
      if (wants_query && visit.end > visit.begin) {
        const int64_t visited = visit.end - visit.begin;
        multiply_tile<E>(rows, p.head_size, visited, m.operands.along_rows(rows, visited, ds + visit.begin, s_row),
                         s_row, 1, packed_operand(m.keys.keys, n).from(visit.begin / kDepthOf<E>),
                         m.grad_query + row * m.query_row, m.query_row, true);
      }
    }
    if (!any) continue;
    const int64_t rows = row_end - row_begin, hidden = p.causal ? key - row_begin : -p.keys;
    if (grad_value != nullptr) {
      accumulate_key_gradient<E>(width, rows, hidden, m.operands.down_columns(rows, width, m.tiles.probability, s_row),
                                 m.operands.grad_output(m.queries, t, row_begin, rows), p.value_size, grad_value,
                                 m.output_row);
    }
    if (grad_key != nullptr) {
      accumulate_key_gradient<E>(width, rows, hidden,
                                 m.operands.down_columns(rows, width, m.tiles.logit_gradient, s_row),
                                 m.operands.query(m.queries, t, row_begin, rows), p.head_size, grad_key, m.query_row);
    }
  }
}

// dst row r = src row r * factor, in the element type.
template <typename T>
inline void store_rows(int64_t rows, int64_t size, const Acc<T>* src, int64_t src_row, Acc<T> factor, T* dst,
                       int64_t dst_row) {
  using A = Acc<T>;
  for (int64_t r = 0; r < rows; ++r) {
    const A* from = src + r * src_row;
    T* to = dst + r * dst_row;
    for_each_vector<A>(size,
                       [=](int64_t c, int64_t n) TILEWRIGHT_INLINE { store(to + c, load(from + c, n) * factor, n); });
  }
}

template <typename A>
inline void clear(A* data, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<A>) store(data + i, Vec<A>{});
}

template <typename T>
void attention_backward(const AttentionBackwardProblem<T>& problem, const AttentionHead<T>* heads,
                        const AttentionGradients<T>* gradients, int64_t group, int64_t begin, int64_t end, T* grad_key,
                        T* grad_value, Acc<T>* scratch) {
  using A = Acc<T>;
  const TileUnitScope unit;
  const AttentionProblem<T>& p = problem.forward;
  const BackwardMemory<ProductElement<T>> m(p.queries, p.head_size, p.value_size, end - begin, scratch);
  const int64_t query_row = m.query_row, output_row = m.output_row, block = attention_key_block(p);
  clear(m.grad_key, (end - begin) * query_row);
  clear(m.grad_value, (end - begin) * output_row);
  for (int64_t g = 0; g < group; ++g) {
    const AttentionGradients<T>& at = gradients[g];
    const bool wants_query = at.grad_query != nullptr || at.query_part != nullptr;
    m.queries.prepare(p, heads[g], at.grad_output, problem.grad_output_row, at.delta, 0, p.queries);
    m.operands.prepare(p, heads[g], at.grad_output, problem.grad_output_row);
    if (wants_query) clear(m.grad_query, p.queries * query_row);
    for (int64_t key = begin; key < smaller(end, p.visible_keys()); key += block) {
      const int64_t n = smaller(block, smaller(end, p.visible_keys()) - key);
      m.keys.pack(p, heads[g], key, n);
      backward_key_block(p, heads[g], m, key, n, wants_query,
                         grad_key != nullptr ? m.grad_key + (key - begin) * query_row : nullptr,
                         grad_value != nullptr ? m.grad_value + (key - begin) * output_row : nullptr);
    }
    if (at.query_part != nullptr) {
      store_rows<A>(p.queries, p.head_size, m.grad_query, query_row, A(1), at.query_part, p.head_size);
    } else if (at.grad_query != nullptr) {
      store_rows<T>(p.queries, p.head_size, m.grad_query, query_row, p.scale, at.grad_query, problem.grad_query_row);
    }
  }
  if (grad_key != nullptr) {
    store_rows<T>(end - begin, p.head_size, m.grad_key, query_row, p.scale, grad_key + begin * problem.grad_key_row,
                  problem.grad_key_row);
  }
  if (grad_value != nullptr) {
    store_rows<T>(end - begin, p.value_size, m.grad_value, output_row, A(1),
                  grad_value + begin * problem.grad_value_row, problem.grad_value_row);
  }
}

template <typename T>
void attention_merge_query_parts(const AttentionBackwardProblem<T>& problem, const Acc<T>* parts, int64_t chunks,
                                 int64_t chunk_stride, T* grad_query) {
  using A = Acc<T>;
  const AttentionProblem<T>& p = problem.forward;
  for (int64_t row = 0; row < p.queries; ++row) {
    const A* from = parts + row * p.head_size;
    T* to = grad_query + row * problem.grad_query_row;
    for_each_vector<A>(p.head_size, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      Vec<A> sum{};
      for (int64_t i = 0; i < chunks; ++i) sum += load(from + i * chunk_stride + c, n);
      store(to + c, sum * p.scale, n);
    });
  }
}

}  // namespace
}  // namespace tilewright

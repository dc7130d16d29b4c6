// Operands of the backward's products that depend on what an element is (gemm.h): P and dS as left operands along their
// rows (dQ) and down their columns (dV, dK), dO and Q as right operands with queries as their depth.
#pragma once
#include "cpu/kernels/attention_gradient_tile.h"

namespace tilewright {
namespace {

// Elements that are sums: everything lies as it is needed, in place.
template <typename E>
struct BackwardOperands {
  E* end;

  BackwardOperands(int64_t, int64_t, int64_t, int64_t, E* memory) : end(memory) {}
  template <typename T>
  void prepare(const AttentionProblem<T>&, const AttentionHead<T>&, const T*, int64_t) const {}

  const E* along_rows(int64_t, int64_t, const E* s, int64_t) const { return s; }
  LeftOperand<E> down_columns(int64_t, int64_t, E* s, int64_t s_row) const { return {s, 1, s_row}; }
  // Queries [row, row + rows), the tiles from `tile` on.
  RightOperand<E> query(const QueryRows<E>& queries, int64_t, int64_t row, int64_t) const {
    return {queries.query + row * queries.query_row, queries.query_row, kTileCols<E>};
  }
  RightOperand<E> grad_output(const QueryRows<E>& queries, int64_t, int64_t row, int64_t) const {
    return {queries.grad_output + row * queries.output_row, queries.output_row, kTileCols<E>};
  }
};

#if defined(TILEWRIGHT_ISA_HAS_BF16_DOT)
template <>
struct BackwardOperands<BF16Pair> {
  int64_t query_size, output_size;  // elements of a packed block of queries
  BF16Pair* rounded;                // [kTileRows][s_row]: dS of one tile
  BF16Pair* transposed;             // [kMaxKeyBlock][pairs of a block's rows], for a tile unit
  BF16Pair* queries;                // per block of queries: panels of [rows, D]
  BF16Pair* grad_outputs;           // per block of queries: panels of [rows, Dv]
  float* end;

  BackwardOperands(int64_t rows, int64_t head_size, int64_t value_size, int64_t s_row, float* memory)
      : query_size(packed_size<BF16Pair>(pairs_of(kQueryBlock), head_size)),
        output_size(packed_size<BF16Pair>(pairs_of(kQueryBlock), value_size)) {
    const int64_t blocks = (tile_count(rows) + kTilesPerBlock - 1) / kTilesPerBlock;
    rounded = reinterpret_cast<BF16Pair*>(memory);
    transposed = rounded + kTileRows * s_row;
    queries = transposed + (kHasTileUnit ? kMaxKeyBlock * pairs_of(kQueryBlock) : 0);
    grad_outputs = queries + blocks * query_size;
    end = reinterpret_cast<float*>(grad_outputs + blocks * output_size);
  }

  void prepare(const AttentionProblem<BF16>& p, const AttentionHead<BF16>& head, const BF16* dout,
               int64_t dout_row) const {
    const int64_t tiles = tile_count(p.queries);
    for (int64_t tile = 0; tile < tiles; tile += kTilesPerBlock) {
      const int64_t row = tile_edge(tile, tiles, p.queries), block = tile / kTilesPerBlock;
      const int64_t rows = tile_edge(smaller(tile + kTilesPerBlock, tiles), tiles, p.queries) - row;
      pack_right(rows, p.head_size, head.query + row * p.query_row, p.query_row, 1, queries + block * query_size);
      pack_right(rows, p.value_size, dout + row * dout_row, dout_row, 1, grad_outputs + block * output_size);
    }
  }

  // n columns in whole vectors; what stands behind the n is 0.
  const BF16Pair* along_rows(int64_t rows, int64_t n, const float* s, int64_t s_row) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < n; c += kLanes<float>) {
        ElementTraits<BF16Pair>::store_along(rounded + r * s_row, c, load(s + r * s_row + c));
      }
      clear_behind(rounded + r * s_row, n);
    }
    return rounded;
  }
  // In place: pair i takes the place of row i, whose values were read as part of a pair before. A tile unit takes pairs
  // along rows only.
  LeftOperand<BF16Pair> down_columns(int64_t rows, int64_t n, float* s, int64_t s_row) const {
    if constexpr (kHasTileUnit) return transposed_columns(rows, n, s, s_row);
    BF16Pair* pairs = reinterpret_cast<BF16Pair*>(s);
    for (int64_t r = 0; r < rows; r += 2) {
      for (int64_t c = 0; c < n; c += kLanes<float>) {
        const VecF32 odd = r + 1 < rows ? load(s + (r + 1) * s_row + c) : VecF32{};
        store(pairs + r / 2 * s_row + c, pairs_across(load(s + r * s_row + c), odd));
      }
    }
    return {pairs, 1, s_row};
  }
  LeftOperand<BF16Pair> transposed_columns(int64_t rows, int64_t n, const float* s, int64_t s_row) const {
    constexpr int64_t kStep = kLanes<float>, kRow = kQueryBlock / 2;
    for (int64_t c = 0; c < n; c += kStep) {
      for (int64_t r = 0; r < rows; r += 2 * kStep) {
        VecU32 block[kStep];
        for (int64_t i = 0; i < kStep; ++i) {
          const int64_t row = r + 2 * i;
          const VecF32 even = row < rows ? load(s + row * s_row + c) : VecF32{};
          const VecF32 odd = row + 1 < rows ? load(s + (row + 1) * s_row + c) : VecF32{};
          block[i] = pairs_across(even, odd);
        }
        transpose<BF16Pair>(block);
        for (int64_t i = 0; i < kStep; ++i) store(transposed + (c + i) * kRow + r / 2, block[i]);
      }
    }
    return {transposed, kRow, 1};
  }
  RightOperand<BF16Pair> query(const QueryRows<BF16Pair>&, int64_t tile, int64_t, int64_t rows) const {
    return packed_operand(queries + tile / kTilesPerBlock * query_size, rows);
  }
  RightOperand<BF16Pair> grad_output(const QueryRows<BF16Pair>&, int64_t tile, int64_t, int64_t rows) const {
    return packed_operand(grad_outputs + tile / kTilesPerBlock * output_size, rows);
  }
};
#endif

}  // namespace
}  // namespace tilewright

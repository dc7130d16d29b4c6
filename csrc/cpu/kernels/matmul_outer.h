// The path of matmul.h for sums over a long K of few rows and columns, both operands contiguous across K (gradients of
// weights over many pixels or rows): a sum of outer products, read where it lies.
//
//   a block of K        A [k][M]           B [k][N]          C [M][N] += A^T B, tile by tile
//                       ###.......         #####.......      what a block reads stays in L1 or L2, C in L1
//
// Packing would write all that is read once more. A last panel that is not whole vectors is packed all the same:
// vectors would reach behind the operand's end.
#pragma once
#include "cpu/kernels/matmul_blocks.h"

namespace tilewright {
namespace {

static_assert(kTileCols<float> <= 32);  // matmul_scratch_elements

// C (+)= A^T B of one block; `tail` takes a packed last panel.
template <typename T>
void outer_block(const MatmulArgs<T>& args, const T* a, const T* b, int64_t depth, int64_t rows, int64_t cols, T* c,
                 bool accumulate, T* tail) {
  const int64_t tiles = tile_count(rows), rest = cols % kTileCols<T>;
  const bool packs = rest % kLanes<T> != 0;
  if (packs) pack_rows(depth, rest, b + cols - rest, args.b_row, tail);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t row = tile_edge(t, tiles, rows), count = tile_edge(t + 1, tiles, rows) - row;
    const GemmTile<T> wide = tile_for_rows<T, kTileVectors>(count), narrow = tile_for_rows<T, 1>(count);
    for (int64_t col = 0; col < cols; col += kTileCols<T>) {
      const int64_t n = smaller(cols - col, kTileCols<T>);
      const bool in_tail = packs && n == rest;
      (n > kLanes<T> ? wide : narrow)(depth, a + row, 1, args.a_col, in_tail ? tail : b + col,
                                      in_tail ? kTileCols<T> : args.b_row, c + row * args.c_row + col, args.c_row, n,
                                      {accumulate});
    }
  }
}

// T is float or double: 16-bit operands have to be widened or paired anyway.
template <typename T>
void outer_product(const MatmulArgs<T>& args, const ItemPointers<T>& item, const MatmulPart& part, T* scratch) {
  const int64_t cols = part.col_end - part.col_begin, rows = part.row_end - part.row_begin;
  T* c = item.c + part.row_begin * args.c_row + part.col_begin;
  for (int64_t r = 0; r < args.reduce_count; ++r) {
    const MatmulWalk::Step offset = args.reduce.at(r);
    for (int64_t k = 0; k < args.K; k += kMatmulOuterBlock) {
      outer_block(args, item.a + offset.a + part.row_begin + k * args.a_col,
                  item.b + offset.b + part.col_begin + k * args.b_row, smaller(kMatmulOuterBlock, args.K - k), rows,
                  cols, c, r > 0 || k > 0, scratch);
    }
  }
  if (has_epilogue(args)) finish_rows(args, item, c, args.c_row, part.row_begin, rows, part.col_begin, cols);
}

}  // namespace
}  // namespace tilewright

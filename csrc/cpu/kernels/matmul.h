// One product of a batch, on one core: C = act(alpha * A B + beta * addend). Four paths (matmul_args.h):
//
//   tile    for each block of columns, for each block of K (kMatmulBlocks): the right block is packed once into panels
//           (half of L2), then every row tile runs over all panels while its part of A lies in L1:
//
//              B block (L2)            for K block i of n:
//             +----+----+----+           C tile (+)= A tile * panels          accumulators: C itself, or scratch where
//      A tile |pan |pan |pan |           after the last block: epilogue       C has 16 bits
//      (L1)   +----+----+----+
//
//           B is read in place where it has contiguous rows and too few row tiles share it for packing to pay; its last
//           partial panel is packed all the same. A is read in place where its rows are contiguous, of the
//           accumulator's type and not at a power-of-two distance; else each tile is copied to L1 first.
//   dot     min(M, N) small, both contiguous along K: a few rows times four columns, lanes along K, summed by one
//           in-register transpose. Nothing is packed, 16-bit operands are widened on load.
//   stream  M small, B with contiguous rows: wide register tiles read B once, in place, some rows of K at a time.
//   outer   M and N small, K long, both contiguous across K: register tiles read both in place (matmul_outer.h).
//
// Every element of C is one chain over K whose cuts depend on K alone, so M and N can be divided at will.
#pragma once
#include "cpu/kernels/matmul_operands.h"
#include "cpu/kernels/matmul_outer.h"
#include "cpu/kernels/matmul_small.h"

namespace tilewright {
namespace {

// A table of the tiles for 1 ... kLeft rows and those in kRows, which follow.
template <typename E, typename C, int kVectors, int kLeft, int... kRows>
inline GemmTile<E, C> tile_from_table(int64_t rows) {
  if constexpr (kLeft > 0) {
    return tile_from_table<E, C, kVectors, kLeft - 1, kLeft, kRows...>(rows);
  } else {
    static constexpr GemmTile<E, C> table[] = {gemm_tile<E, kRows, kVectors, E, C>...};
    return table[rows - 1];
  }
}
template <typename E, typename C, int kVectors>
inline GemmTile<E, C> tile_of(int64_t rows) {
  return tile_from_table<E, C, kVectors, kTileRows>(rows);
}

// Sums of more than kLongestChain elements in a row are cut: their rounding grows with their length (chains of 512 have
// 2.2 times native's error, of 384 2.0 times, of 256 1.3 times).
constexpr int64_t kLongestChain = 256;

// One row tile of A by one panel of B, `depth` elements along K. Between two chains C is in L1.
template <typename E, typename C>
inline TILEWRIGHT_INLINE void multiply_panel(GemmTile<E, C> tile, int64_t depth, const E* a, int64_t a_row,
                                             int64_t a_col, const E* panel, int64_t row_step, C* c, int64_t c_row,
                                             int64_t n, const TileEnd<C>& end) {
  // What C rounds to can't be added to. A tile unit's products are of 16-bit types, whose results are rounded by more.
  constexpr bool kCuts = sizeof(C) == sizeof(SumOf<E>) && kStepOf<E> == 1;
  const int64_t chains = kCuts && depth > kLongestChain ? (depth + kLongestChain - 1) / kLongestChain : 1;
  TileEnd<C> between{end.accumulate};
  for (int64_t i = 0, k = 0; i + 1 < chains; ++i) {
    const int64_t next = depth * (i + 1) / chains;
    tile(next - k, a + k * a_col, a_row, a_col, panel + k * row_step, row_step, c, c_row, n, between);
    between.accumulate = true;
    k = next;
  }
  const int64_t k = depth * (chains - 1) / chains;
  tile(depth - k, a + k * a_col, a_row, a_col, panel + k * row_step, row_step, c, c_row, n,
       {between.accumulate, end.addend, end.addend_row});
}

template <typename E, typename C>
inline void multiply_row_tile(const RightBlock<E>& right, int64_t rows, int64_t cols, int64_t depth, const E* a,
                              int64_t a_row, int64_t a_col, C* c, int64_t c_row, TileEnd<C> end, bool prefetches) {
  constexpr int64_t kPanel = kTileCols<E>;
  const GemmTile<E, C> wide = tile_of<E, C, kTileVectors>(rows);
  int64_t col = 0;
  const E* panel = right.panels;
  for (; col + kPanel <= right.whole; col += kPanel, panel += right.panel_step) {
    if (prefetches) prefetch_rows<1>(col + kPanel < cols ? c + col + kPanel : c + rows * c_row, c_row, rows, kPanel);
    multiply_panel(wide, depth, a, a_row, a_col, panel, right.row_step, c + col, c_row, kPanel, end);
    if (end.addend != nullptr) end.addend += kPanel;
  }
  if (col == cols) return;
  const int64_t rest = cols - col;
  const GemmTile<E, C> last = rest > kLanes<E> ? wide : tile_of<E, C, 1>(rows);
  if (prefetches) prefetch_rows<1>(c + rows * c_row, c_row, rows, kPanel);
  const bool is_apart = right.tail != nullptr;
  multiply_panel(last, depth, a, a_row, a_col, is_apart ? right.tail : panel, is_apart ? kPanel : right.row_step,
                 c + col, c_row, rest, end);
}

// One block of columns and at most the rows of a sweep, all of K.
template <typename T>
void tile_sweep(const MatmulArgs<T>& args, const ItemPointers<T>& item, int64_t row_begin, int64_t rows_in_all,
                int64_t col, int64_t cols, Acc<T>* scratch) {
  using A = Acc<T>;
  using E = ProductElement<T>;
  static_assert(sizeof(E) == sizeof(A));  // so that scratch has room for either
  static_assert(kMatmulBlocks<E>.values == kDepthOf<E> && kMatmulBlocks<E>.step == kStepOf<E>);
  const DepthBlocks blocks = blocks_of_items(args, args.blocks.count(args.K));
  const int64_t block_depth = args.blocks.block_depth(args.K), padded = (cols + 31) / 32 * 32;
  E* right_buffer = reinterpret_cast<E*>(scratch);
  E* left_buffer = right_buffer + (block_depth * padded + 15) / 16 * 16;
  A* accumulators = reinterpret_cast<A*>(left_buffer + kLeftTogether * left_tile_size(block_depth));
  // An addend is added to the sums while they are in registers; what is left of the epilogue comes afterwards.
  const bool adds = can_add_in_tile(args) && (kIsAccumulator<T> || blocks.count == 1);
  const bool finish = has_epilogue(args, adds), rounds_only = !finish && blocks.count == 1;
  ItemPointers<T> rest = item;
  if (adds) rest.addend = nullptr;
  const RowTiles tiles{rows_in_all, tile_count(rows_in_all)};
  const bool is_transposed = args.a_row == 1, stays_transposed = is_transposed && !kHasTileUnit;
  const int64_t together = is_transposed ? kLeftTogether : 1;
  for (int64_t index = 0; index < blocks.count; ++index) {
    const DepthRange range = depth_range<E>(args, blocks, index);
    const int64_t depth = elements_of<E>(range.depth);
    const T* a = item.a + range.offset.a + row_begin * args.a_row + range.begin * args.a_col;
    const bool copies_left =
        !left_is_in_place<T>(a, args.a_row, args.a_col, range.depth, /*is_shared=*/rows_in_all > 1 && cols > 32);
    const T* b = item.b + range.offset.b + range.begin * args.b_row + col * args.b_col;
    const RightBlock<E> right = right_block(b, args.b_row, args.b_col, range.depth, cols, tiles.count, right_buffer);
    const bool is_last = index + 1 == blocks.count;
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t first = tiles.edge(t), rows = tiles.edge(t + 1) - first, row = row_begin + first;
      if (copies_left && t % together == 0) {
        const int64_t last = smaller(t + together, tiles.count);
        copy_left(a, args.a_row, args.a_col, tiles, t, last, range.depth, left_buffer);
      }
      // The next tile's rows while this one is multiplied: a processor that meets a new row every kilobyte or two does
      // not fetch ahead by itself.
      if (args.a_col == 1 && t + 1 < tiles.count) {
        const int64_t next = tiles.edge(t + 1);
        prefetch_rows<0>(a + next * args.a_row, args.a_row, tiles.edge(t + 2) - next, range.depth);
      }
      const E* left = left_buffer + t % together * left_tile_size(depth);
      if (args.left_sums != nullptr && col == 0) add_tile_sums(left, depth, rows, args.left_sums + row);
      int64_t left_row = stays_transposed ? 1 : depth, left_col = stays_transposed ? kTileRows : 1;
      if (!copies_left) {
        left = reinterpret_cast<const E*>(a + first * args.a_row);
        left_row = args.a_row / kDepthOf<E>;
        left_col = 1;
      }
      TileEnd<T> end{index > 0};
      if (adds && is_last) {
        end.addend = item.addend + row * args.addend_row + col;
        end.addend_row = args.addend_row;
      }
      if constexpr (kIsAccumulator<T>) {
        T* c = item.c + row * args.c_row + col;
        multiply_row_tile(right, rows, cols, depth, left, left_row, left_col, c, args.c_row, end, true);
        if (is_last && finish) finish_rows(args, rest, c, args.c_row, row, rows, col, cols);
      } else if (rounds_only) {
        T* c = item.c + row * args.c_row + col;
        multiply_row_tile(right, rows, cols, depth, left, left_row, left_col, c, args.c_row, end, true);
      } else {
        A* acc = accumulators + (blocks.count == 1 ? 0 : first * padded);
        if (is_last) prefetch_rows<1>(item.c + row * args.c_row + col, args.c_row, rows, cols);
        multiply_row_tile(right, rows, cols, depth, left, left_row, left_col, acc, padded, TileEnd<A>{index > 0},
                          false);
        if (is_last) finish_rows(args, item, acc, padded, row, rows, col, cols);
      }
    }
  }
}

template <typename T>
void tile_product(const MatmulArgs<T>& args, const ItemPointers<T>& item, const MatmulPart& part, Acc<T>* scratch) {
  const int64_t cols = part.col_end - part.col_begin, rows = part.row_end - part.row_begin;
  const int64_t block_cols = args.blocks.block_cols(args.K), col_blocks = (cols + block_cols - 1) / block_cols;
  // Where no accumulators wait in scratch for the next block of K, one sweep may cover all rows.
  const bool waits = !kIsAccumulator<T> && args.reduce_count * args.blocks.count(args.K) > 1;
  const int64_t sweep = waits ? args.blocks.sweep_rows : rows;
  for (int64_t i = 0, col = part.col_begin; i < col_blocks; ++i) {
    // Equal blocks, on panel edges.
    const int64_t end = i + 1 == col_blocks ? part.col_end : part.col_begin + cols * (i + 1) / col_blocks / 32 * 32;
    for (int64_t row = part.row_begin; row < part.row_end; row += sweep) {
      tile_sweep(args, item, row, smaller(sweep, part.row_end - row), col, end - col, scratch);
    }
    col = end;
  }
}

template <typename T>
inline void compute_part(const MatmulArgs<T>& args, const MatmulPart& part, Acc<T>* scratch) {
  const ItemPointers<T> item = item_pointers(args, part.item);
  if (args.path == MatmulPath::kTile) return tile_product(args, item, part, scratch);
  if (args.path == MatmulPath::kDot) return dot_product(args, item, part, scratch);
  if constexpr (kIsAccumulator<T>) {
    if (args.path == MatmulPath::kOuter) return outer_product(args, item, part, scratch);
  }
  stream_product(args, item, part, scratch);
}

template <typename T>
void matmul_part(const MatmulArgs<T>& args, const MatmulPart& part, Acc<T>* scratch) {
  const TileUnitScope unit;
  compute_part(args, part, scratch);
}

template <typename T>
void matmul_items(const MatmulArgs<T>& args, int64_t begin, int64_t end, Acc<T>* scratch) {
  const TileUnitScope unit;
  for (int64_t item = begin; item < end; ++item) compute_part(args, {item, 0, args.M, 0, args.N}, scratch);
}

template <typename T>
void matmul_add_partials(const MatmulArgs<T>& args, Acc<T>* partials, int64_t parts, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t size = args.M * args.N;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t number = i / args.M, row = i % args.M;
    A* first = partials + number * parts * size + row * args.N;
    for_each_vector<A>(args.N, [&](int64_t j, int64_t n) TILEWRIGHT_INLINE {
      Vec<A> sum = load(first + j, n);
      for (int64_t part = 1; part < parts; ++part) sum += load(first + part * size + j, n);
      store(first + j, sum, n);
    });
    finish_rows(args, item_pointers(args, number), first, args.N, row, 1, 0, args.N);
  }
}

template <typename T>
void fill_matmul(TypedKernels<T>& table) {
  table.matmul = {kMatmulBlocks<ProductElement<T>>, matmul_part<T>, matmul_items<T>, matmul_add_partials<T>};
}

}  // namespace
}  // namespace tilewright

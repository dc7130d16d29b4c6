// The operands of matmul.h's tile path: row tiles of A in place or copied to L1, blocks of B in panels.
#pragma once
#include "cpu/kernels/matmul_blocks.h"

namespace tilewright {
namespace {

// Asks for what will be written next while there is something to multiply: a result beyond L2 is else waited for line
// by line (96 products 197 x 64 x 197: 1.2x the time; no difference where C is in cache).
template <int kWrite, typename T>
inline void prefetch_rows(const T* p, int64_t row, int64_t rows, int64_t cols) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; j += kLine) __builtin_prefetch(p + i * row + j, kWrite);
  }
}

// Rows a power of two apart fall into the same cache sets: a tile's rows would evict each other.
inline bool is_aliasing(int64_t stride_bytes) { return stride_bytes % 2048 == 0; }

struct RowTiles {
  int64_t rows, count;
  int64_t edge(int64_t tile) const { return tile_edge(tile, count, rows); }
};

// Tiles of a transposed A are copied by the handful: a column of one tile is less than a line, which would be fetched,
// and evicted, several times over (5-20 cycles a column alone, 5 together).
constexpr int64_t kLeftRows = kTileRows <= 16 ? 16 : 32, kLeftTogether = 64 / kLeftRows;
// Where a part of each of its rows is read, a processor does not fetch them ahead by itself: so many rows (32: the
// same).
constexpr int64_t kLeftAhead = 16;
// Elements from one copied tile to the next; depth in elements.
inline int64_t left_tile_size(int64_t depth) { return kLeftRows * depth; }

// Can tiles read a block of A, `depth` values along K, where it lies? `is_shared`: several rows are read by several
// panels.
template <typename T>
inline bool left_is_in_place(const T* a, int64_t a_row, int64_t a_col, int64_t depth, bool is_shared) {
  using E = ProductElement<T>;
  constexpr int64_t kDepth = kDepthOf<E> * kStepOf<E>, kSize = sizeof(T);
  if constexpr (sizeof(E) != kDepthOf<E> * sizeof(T)) return false;
  if (a_col != 1 || a_row % kDepthOf<E> != 0 || depth % kDepth != 0) return false;
  if (!is_shared) return true;
  const bool crosses_lines = kHasTileUnit && (a_row * kSize | reinterpret_cast<int64_t>(a)) % 64 != 0;
  return !crosses_lines && !is_aliasing(a_row * kSize);
}

// Tiles [first, last) of A as accumulators in `buffer`. Transposed operands stay transposed, so nothing is shuffled: a
// tile's element (i, k) is at k * kTileRows + i, otherwise at i * depth + k.
template <typename T>
void copy_left(const T* a, int64_t a_row, int64_t a_col, const RowTiles& tiles, int64_t first, int64_t last,
               int64_t depth, Acc<T>* buffer) {
  using A = Acc<T>;
  if (a_row == 1) {
    // Whole vectors: what is written behind a tile's column belongs to the next one, which comes later, and what is
    // read behind it lies before the next.
    if (depth == 0) return;
    const bool may_read_on = a_col >= kTileRows + kLanes<A>;
    int64_t edges[kLeftTogether + 1];
    for (int64_t t = first; t <= last; ++t) edges[t - first] = tiles.edge(t);
    const auto copy_column = [&](int64_t k, bool whole) TILEWRIGHT_INLINE {
      for (int64_t t = 0; t < last - first; ++t) {
        const T* from = a + k * a_col + edges[t];
        A* to = buffer + t * left_tile_size(depth) + k * kTileRows;
#pragma GCC unroll 8
        for (int64_t i = 0; i < kTileRows; i += kLanes<A>) {
          const int64_t rows = edges[t + 1] - edges[t] - i;
          if (whole) {
            store(to + i, load(from + i));
          } else if (rows > 0) {
            store(to + i, load(from + i, smaller(rows, kLanes<A>)));
          }
        }
      }
    };
    // With the first handful come all tiles' rows: the next ones find them in L2.
    const int64_t ahead = first == 0 ? tiles.rows : 0;
    for (int64_t k = 0; k < depth - 1; ++k) {
      if (k + kLeftAhead < depth) prefetch_rows<0>(a + (k + kLeftAhead) * a_col, a_col, 1, ahead);
      copy_column(k, may_read_on);
    }
    copy_column(depth - 1, false);
    return;
  }
  for (int64_t t = first; t < last; ++t) {
    for (int64_t i = tiles.edge(t); i < tiles.edge(t + 1); ++i) {
      const T* from = a + i * a_row;
      A* to = buffer + (t - first) * left_tile_size(depth) + (i - tiles.edge(t)) * depth;
      if (a_col == 1) {
        for_each_vector<A>(depth, [=](int64_t k, int64_t n) TILEWRIGHT_INLINE { store(to + k, load(from + k, n), n); });
      } else {
        for (int64_t k = 0; k < depth; ++k) to[k] = load(from + k * a_col, 1)[0];
      }
    }
  }
}

#if defined(TILEWRIGHT_ISA_HAS_BF16_DOT)
// A transposed operand's tile for a tile unit, which takes pairs along rows only: element (i, k) at i * elements + k.
inline void copy_left_transposed(const BF16* a, int64_t a_col, int64_t rows, int64_t depth, BF16Pair* buffer) {
  constexpr int64_t kStep = kLanes<BF16Pair>;
  const int64_t elements = pairs_of(depth);
  for (int64_t i = 0; i < rows; i += kStep) {
    for (int64_t k = 0; k < elements; k += kStep) {
      VecU32 block[kStep];
      for (int64_t j = 0; j < kStep; ++j) {
        const int64_t value = 2 * (k + j);
        const BF16* even = value < depth ? a + value * a_col + i : nullptr;
        const BF16* odd = value + 1 < depth ? a + (value + 1) * a_col + i : nullptr;
        block[j] = load_pairs_across(even, odd, smaller(rows - i, kStep));
      }
      transpose<BF16Pair>(block);
      for (int64_t j = 0; j < kStep && i + j < rows; ++j) {
        store(buffer + (i + j) * elements + k, block[j]);
      }
    }
  }
}

// The same as pairs. A transposed operand's element (i, k) is at k * kTileRows + i, otherwise at i * elements + k.
inline void copy_left(const BF16* a, int64_t a_row, int64_t a_col, const RowTiles& tiles, int64_t first, int64_t last,
                      int64_t depth, BF16Pair* buffer) {
  const int64_t elements = pairs_of(depth);
  if (kHasTileUnit && a_row == 1 && a_col != 1) {
    for (int64_t t = first; t < last; ++t) {
      copy_left_transposed(a + tiles.edge(t), a_col, tiles.edge(t + 1) - tiles.edge(t), depth,
                           buffer + (t - first) * left_tile_size(elements));
    }
    return;
  }
  if (!kHasTileUnit && a_row == 1) {
    int64_t edges[kLeftTogether + 1];
    for (int64_t from = first; from < last; from += kLeftTogether) {
      const int64_t count = smaller(kLeftTogether, last - from);
      BF16Pair* to = buffer + (from - first) * left_tile_size(elements);
      for (int64_t t = 0; t <= count; ++t) edges[t] = tiles.edge(from + t);
      // With the first handful come all tiles' rows: the next ones find them in L2.
      const int64_t ahead = from == 0 ? tiles.rows : 0;
      for (int64_t k = 0; k < elements; ++k, to += kTileRows) {
        const BF16* even = a + 2 * k * a_col;
        if (2 * k + kLeftAhead + 1 < depth) prefetch_rows<0>(even + kLeftAhead * a_col, a_col, 2, ahead);
        const BF16* odd = 2 * k + 1 < depth ? even + a_col : nullptr;
        for (int64_t t = 0; t < count; ++t) {
          // Whole vectors: what is written behind a tile's column belongs to the next one, which comes later.
          store(to + t * left_tile_size(elements),
                load_pairs_across(even + edges[t], odd == nullptr ? nullptr : odd + edges[t], edges[t + 1] - edges[t]));
        }
      }
    }
    return;
  }
  for (int64_t t = first; t < last; ++t) {
    for (int64_t i = tiles.edge(t); i < tiles.edge(t + 1); ++i) {
      const BF16* from = a + i * a_row;
      BF16Pair* to = buffer + (t - first) * left_tile_size(elements) + (i - tiles.edge(t)) * elements;
      if (a_col != 1) {
        for (int64_t k = 0; k < depth; k += 2) {
          to[k / 2] = {from[k * a_col], k + 1 < depth ? from[(k + 1) * a_col] : BF16{}};
        }
        for (int64_t k = (depth + 1) / 2; k < elements; ++k) to[k] = {};
        continue;
      }
      constexpr int64_t kStep = 2 * kLanes<BF16Pair>;
      int64_t k = 0;
      for (; k + kStep <= depth; k += kStep) store(to + k / 2, load_pairs(from + k));
      // Behind the last row of the last tile there is room for a whole vector; other rows come later.
      if (k < depth) store(to + k / 2, load_pairs(from + k, depth - k));
    }
  }
}
#endif

// sums[i] += row i of a tile that copy_left has copied from a transposed operand. It stays transposed but for a tile
// unit; what stands behind the tile's rows is then added to lanes that are not stored. In chains of 32, because rows of
// nearly equal values round the same way each time.
template <typename E>
void add_tile_sums(const E* tile, int64_t elements, int64_t rows, SumOf<E>* sums) {
  using A = SumOf<E>;
  using Traits = ElementTraits<E>;
  if constexpr (kHasTileUnit) {  // rows lie along K: a chain for each lane, of depth / 16
    for (int64_t i = 0; i < rows; ++i) {
      Vec<A> total{};
      for (int64_t k = 0; k < elements; k += kLanes<E>) total = Traits::add_to(total, load(tile + i * elements + k));
      sums[i] += reduce_add<A>(total);
    }
    return;
  }
  for (int64_t i = 0; i < rows; i += kLanes<E>) {
    constexpr int64_t kRun = 64;
    const int64_t n = smaller(rows - i, kLanes<E>);
    Vec<A> total = load(sums + i, n);
    for (int64_t first = 0; first < elements; first += kRun) {
      const int64_t end = smaller(first + kRun, elements);
      Vec<A> even{}, odd{};
      int64_t k = first;
      for (; k + 2 <= end; k += 2) {
        even = Traits::add_to(even, load(tile + k * kTileRows + i));
        odd = Traits::add_to(odd, load(tile + (k + 1) * kTileRows + i));
      }
      if (k < end) even = Traits::add_to(even, load(tile + k * kTileRows + i));
      total += even + odd;
    }
    store(sums + i, total, n);
  }
}

// A block of B as the tiles see it: panels of packed columns, or whole panels in place and the last one packed.
template <typename E>
struct RightBlock {
  const E* panels;
  int64_t panel_step, row_step;
  const E* tail;  // the last, partial panel, where it is not among `panels`; row step kTileCols
  int64_t whole;  // columns in `panels`
};

template <typename T, typename E>
RightBlock<E> right_block(const T* b, int64_t b_row, int64_t b_col, int64_t depth, int64_t cols, int64_t row_tiles,
                          E* buffer) {
  constexpr int64_t kPanel = kTileCols<E>;
  if constexpr (kIsAccumulator<T>) {
    const bool few_readers = row_tiles <= 1 || (row_tiles <= 3 && depth * b_row * int64_t{sizeof(T)} <= 16384);
    if (b_col == 1 && few_readers) {
      const int64_t whole = cols / kPanel * kPanel;
      if (whole < cols) pack_right(depth, cols - whole, b + whole, b_row, b_col, buffer);
      return {b, kPanel, b_row, buffer, whole};
    }
  }
  pack_right(depth, cols, b, b_row, b_col, buffer);
  return {buffer, kPanel * elements_of<E>(depth), kPanel, nullptr, cols};
}

}  // namespace
}  // namespace tilewright

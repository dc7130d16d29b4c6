// The matrix-product vocabulary of matmul, conv2d and attention, on one core: a register tile, a packed right operand,
// and the loop over tiles. Operands consist of elements E: float32 or float64 (E = Acc<T>), to which 16-bit types are
// widened while they are packed, or pairs of bfloat16 (gemm_pairs.h).
//
//   right operand, packed           C[M, N] (+)= left[M, K] * right[K, N]
//   [panel][K][kTileCols]                     kTileCols columns of one panel
//   +--------+--------+--                    +--------+
//   | k = 0  | k = 0  |            left      |########|  one register tile: kTileRows x kTileVectors accumulators,
//   | k = 1  | k = 1  |            rows in   |########|  each k: kTileVectors loads of a panel row, and one broadcast
//   |  ...   |  ...   |            place     |########|  of left per row
//   +--------+--------+--                    +--------+
//   columns behind N are zero
//
// Left is read through (row, column) strides, so plain, transposed and packed operands are the same code. Every element
// of C is one chain of fmas over k in order: the result does not depend on how M and N were cut.
#pragma once
#include "common/macros.h"
#include "common/types.h"

namespace tilewright {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// An element of a product's operands: what it is summed in, how many values along K it holds, and how a vector of
// elements is loaded from values of a type T that lie along K (the first n values, the rest 0).
template <typename E>
struct ElementTraits {
  using Sum = E;
  static constexpr int64_t kDepth = 1;
  // Operands hold a multiple of so many elements along K, zeros behind what is there.
  static constexpr int64_t kStep = 1;
  template <typename T>
  static TILEWRIGHT_INLINE Vec<E> load_along(const T* p) {
    return load(p);
  }
  template <typename T>
  static TILEWRIGHT_INLINE Vec<E> load_along(const T* p, int64_t n) {
    return load(p, n);
  }
  // sum with the element's values added
  static TILEWRIGHT_INLINE Vec<E> add_to(Vec<E> sum, Vec<E> element) { return sum + element; }
  // Sums as values c, c + 1, ... of a left operand's row.
  static TILEWRIGHT_INLINE void store_along(E* row, int64_t c, Vec<E> sums) { store(row + c, sums); }
  // Of sums, all or the first n.
  template <typename C>
  static TILEWRIGHT_INLINE void store_sums(C* p, Vec<E> sums) {
    store(p, sums);
  }
  template <typename C>
  static TILEWRIGHT_INLINE void store_sums(C* p, Vec<E> sums, int64_t n) {
    store(p, sums, n);
  }
};
template <typename E>
using SumOf = typename ElementTraits<E>::Sum;
template <typename E>
constexpr int64_t kDepthOf = ElementTraits<E>::kDepth;
template <typename E>
constexpr int64_t kStepOf = ElementTraits<E>::kStep;
// Elements of E that hold K values.
template <typename E>
inline int64_t elements_of(int64_t K) {
  constexpr int64_t kValues = kDepthOf<E> * kStepOf<E>;
  return (K + kValues - 1) / kValues * kStepOf<E>;
}

// Zeros behind the n values of a left operand's row, which store_along has filled in whole vectors.
template <typename E>
inline void clear_behind(E* row, int64_t n) {
  if constexpr (kStepOf<E> > 1) {
    constexpr int64_t kStored = kLanes<SumOf<E>>;
    const int64_t stored = (n + kStored - 1) / kStored * kStored;
    if (stored < elements_of<E>(n) * kDepthOf<E>) ElementTraits<E>::store_along(row, stored, Vec<SumOf<E>>{});
  }
}

// The elements that products of T are computed from.
template <typename T>
struct ProductElementOf {
  using type = Acc<T>;
};
template <typename T>
using ProductElement = typename ProductElementOf<T>::type;

template <typename E>
constexpr int64_t kTileCols = kTileVectors * kLanes<E>;

// What a tile's sums are added to before they are stored: what C holds, the same tile of another matrix, both or none.
template <typename C>
struct TileEnd {
  bool accumulate = false;
  const C* addend = nullptr;
  int64_t addend_row = 0;
};

// The accumulators of a register tile, and its three steps: clear, add one k after the other, store.
template <typename E, int kRows, int kVectors>
struct TileSums {
  using A = SumOf<E>;
  Vec<A> at[kRows][kVectors];

  TILEWRIGHT_INLINE TileSums() {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) at[i][v] = Vec<A>{};
    }
  }

  // One k: rows of left are left_row apart, right is kVectors vectors of B, E itself or a 16-bit type.
  template <typename B>
  TILEWRIGHT_INLINE void add(const E* left, int64_t left_row, const B* from) {
    Vec<E> right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = load(from + v * kLanes<E>);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec<E> value = broadcast<E>(left[i * left_row]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) at[i][v] = fma(value, right[v], at[i][v]);
    }
  }

  // The same for rows anywhere: element k of each.
  TILEWRIGHT_INLINE void add_rows(const E* const (&left)[kRows], int64_t k, const E* from) {
    Vec<E> right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = load(from + v * kLanes<E>);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec<E> value = broadcast<E>(left[i][k]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) at[i][v] = fma(value, right[v], at[i][v]);
    }
  }

  // n: columns of the tile that are there, 1 <= n <= kVectors * kLanes. C is A, or a 16-bit type that is rounded to.
  template <typename C>
  TILEWRIGHT_INLINE void store_to(C* c, int64_t c_row, int64_t n, const TileEnd<C>& end) const {
    const bool accumulate = end.accumulate;
    const C* addend = end.addend;
    const int64_t addend_row = end.addend_row;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        C* out = c + i * c_row + v * kLanes<A>;
        const int64_t width = n - v * kLanes<A>;
        Vec<A> sum = at[i][v];
        if (width >= kLanes<A>) {
          if (accumulate) sum += load(out);
          if (addend != nullptr) sum += load(addend + i * addend_row + v * kLanes<A>);
          ElementTraits<E>::store_sums(out, sum);
        } else if (width > 0) {
          if (accumulate) sum += load(out, width);
          if (addend != nullptr) sum += load(addend + i * addend_row + v * kLanes<A>, width);
          ElementTraits<E>::store_sums(out, sum, width);
        }
      }
    }
  }
};

#if defined(TILEWRIGHT_ISA_HAS_TILE_UNIT)
constexpr bool kHasTileUnit = true;
template <int kRows, int kVectors, typename C>
void multiply_on_tile_unit(int64_t K, const BF16Pair* a, int64_t a_row, const BF16Pair* b, int64_t b_row, C* c,
                           int64_t c_row, int64_t n, const TileEnd<C>& end);
template <int kVectors>
void multiply_stretches_on_tile_unit(int64_t stretches, const int32_t* offsets, int64_t K, const BF16Pair* a,
                                     int64_t a_row, const BF16Pair* b, float* c, int64_t c_row);
#else
constexpr bool kHasTileUnit = false;
struct [[maybe_unused]] TileUnitScope {};
#endif

// K elements. b has kVectors whole vectors in every row. B is E, or a 16-bit type that is widened on load: for a right
// operand that is read once, in place.
template <typename E, int kRows, int kVectors, typename B = E, typename C = SumOf<E>>
void gemm_tile(int64_t K, const E* a, int64_t a_row, int64_t a_col, const B* b, int64_t b_row, C* c, int64_t c_row,
               int64_t n, const TileEnd<C>& end) {
#if defined(TILEWRIGHT_ISA_HAS_TILE_UNIT)
  if constexpr (kStepOf<E> > 1) return multiply_on_tile_unit<kRows, kVectors>(K, a, a_row, b, b_row, c, c_row, n, end);
#endif
  TileSums<E, kRows, kVectors> sums;
  for (int64_t k = 0; k < K; ++k) sums.add(a + k * a_col, a_row, b + k * b_row);
  sums.store_to(c, c_row, n, end);
}

// A tile whose left rows are read in stretches of K elements: stretch s starts at a + offsets[s], and b's rows, a
// panel's, go on from stretch to stretch.
template <typename E, int kRows, int kVectors>
void gemm_stretches(int64_t stretches, const int32_t* offsets, int64_t K, const E* a, int64_t a_row, const E* b,
                    SumOf<E>* c, int64_t c_row) {
#if defined(TILEWRIGHT_ISA_HAS_TILE_UNIT)
  if constexpr (kStepOf<E> > 1) {
    return multiply_stretches_on_tile_unit<kVectors>(stretches, offsets, K, a, a_row, b, c, c_row);
  }
#endif
  TileSums<E, kRows, kVectors> sums;
  for (int64_t s = 0; s < stretches; ++s) {
    const E* from = a + offsets[s];
    for (int64_t k = 0; k < K; ++k, b += kTileCols<E>) sums.add(from + k, a_row, b);
  }
  sums.store_to(c, c_row, kVectors * kLanes<SumOf<E>>, TileEnd<SumOf<E>>{});
}

template <typename E, typename C = SumOf<E>>
using GemmTile = void (*)(int64_t, const E*, int64_t, int64_t, const E*, int64_t, C*, int64_t, int64_t,
                          const TileEnd<C>&);

// The tile for exactly `rows` rows (1..kTileRows): every row tail runs at full speed.
template <typename A, int kVectors, int kRows = kTileRows>
inline GemmTile<A> tile_for_rows(int64_t rows) {
  if constexpr (kRows == 1) {
    return gemm_tile<A, 1, kVectors>;
  } else {
    return rows == kRows ? gemm_tile<A, kRows, kVectors> : tile_for_rows<A, kVectors, kRows - 1>(rows);
  }
}

inline int64_t tile_count(int64_t M) { return (M + kTileRows - 1) / kTileRows; }

// First row of tile t. Rows are cut into equal tiles rather than full ones and a thin last one: 30 rows are 10 + 10 +
// 10, not 14 + 14 + 2. A tile unit takes as long for 17 rows as for 32.
inline int64_t tile_edge(int64_t t, int64_t tiles, int64_t M) {
  if constexpr (kHasTileUnit) return t * kTileRows < M ? t * kTileRows : M;
  return M * t / tiles;
}

// C[M, N] (+)= left[M, K] * panels, for one K block whose panels were written by pack_right.
template <typename A>
void gemm_panels(int64_t M, int64_t N, int64_t K, const A* a, int64_t a_row, int64_t a_col, const A* panels,
                 SumOf<A>* c, int64_t c_row, bool accumulate) {
  const int64_t tiles = tile_count(M);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t row = tile_edge(t, tiles, M), rows = tile_edge(t + 1, tiles, M) - row;
    const GemmTile<A> wide = tile_for_rows<A, kTileVectors>(rows), narrow = tile_for_rows<A, 1>(rows);
    for (int64_t col = 0; col < N; col += kTileCols<A>) {
      const int64_t n = N - col < kTileCols<A> ? N - col : kTileCols<A>;
      const GemmTile<A> tile = n > kLanes<A> ? wide : narrow;
      tile(K, a + row * a_row, a_row, a_col, panels + col * K, kTileCols<A>, c + row * c_row + col, c_row, n,
           {accumulate});
    }
  }
}

}  // namespace
}  // namespace tilewright

#include "cpu/kernels/gemm_pack.h"
#if defined(TILEWRIGHT_ISA_HAS_BF16_DOT)
#include "cpu/kernels/gemm_pairs.h"
#endif
#if defined(TILEWRIGHT_ISA_HAS_TILE_UNIT)
#include "cpu/kernels/gemm_tile_unit.h"
#endif

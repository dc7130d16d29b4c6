// What the attention kernels share: block sizes, one tile row of a product, dropout's bits.
//
// A tile is up to kTileRows queries by up to key_block keys; its logits stay in L1 between the two products.
#pragma once
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/keep_bits.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942;
constexpr int64_t kMaxKeyBlock = 128, kMaxChain = 128;
// Queries that share a pass over a key block: about 70, so that keys and values come from L2 or L3 once per 70 queries.
constexpr int64_t kTilesPerBlock = 72 / kTileRows;
constexpr int64_t kQueryBlock = kTilesPerBlock * kTileRows;
template <typename A>
constexpr A kInfinity = static_cast<A>(__builtin_inf());
// From here on a logit's own rounding error could reach the exponential's range.
template <typename A>
constexpr A kLargeLogit = sizeof(A) == 4 ? A(1 << 24) : A(1ll << 53);

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Keys of a block: one block of keys and values stays in half an L2 of 512 KB or more.
inline int64_t key_block_of(int64_t head_size, int64_t value_size) {
  const int64_t size = head_size + value_size;
  return size <= 512 ? kMaxKeyBlock : 64;
}

// Row stride of a copied [rows, size] operand: whole tiles, plus a vector so that rows do not all fall into a few cache
// sets where size is a power of two.
template <typename E>
inline int64_t padded_row(int64_t size) {
  return round_up(elements_of<E>(size), kTileCols<E>) + kLanes<E>;
}

// One left operand of elements E: element (i, k) at data + i * row + k * col.
template <typename E>
struct LeftOperand {
  const E* data;
  int64_t row;
  int64_t col;
};

// One right operand of elements E (gemm.h): element (k, n) at data + (n / kTileCols) * panel + k * row + n % kTileCols.
template <typename E>
struct RightOperand {
  const E* data;
  int64_t row;
  int64_t panel;

  // From element k on.
  RightOperand from(int64_t k) const { return {data + k * row, row, panel}; }
};

// What pack_right wrote, `depth` values along K.
template <typename E>
inline RightOperand<E> packed_operand(const E* panels, int64_t depth) {
  return {panels, kTileCols<E>, kTileCols<E> * elements_of<E>(depth)};
}

// C[rows, N] (+)= left[rows, K] * right, for at most kTileRows rows. K in elements.
template <typename E>
inline void multiply_piece(int64_t rows, int64_t N, int64_t K, const E* a, int64_t a_row, int64_t a_col,
                           RightOperand<E> b, SumOf<E>* c, int64_t c_row, bool accumulate) {
  const GemmTile<E> wide = tile_for_rows<E, kTileVectors>(rows);
  int64_t col = 0;
  for (; N - col > kLanes<E>; col += kTileCols<E>, b.data += b.panel) {
    const int64_t n = N - col < kTileCols<E> ? N - col : kTileCols<E>;
    wide(K, a, a_row, a_col, b.data, b.row, c + col, c_row, n, {accumulate});
  }
  if (col < N) {
    tile_for_rows<E, 1>(rows)(K, a, a_row, a_col, b.data, b.row, c + col, c_row, N - col, {accumulate});
  }
}

// The same for any K, in values. Chains of more than kMaxChain fmas are cut, because their rounding grows with their
// length.
template <typename E>
inline void multiply_tile(int64_t rows, int64_t N, int64_t depth, const E* a, int64_t a_row, int64_t a_col,
                          RightOperand<E> b, SumOf<E>* c, int64_t c_row, bool accumulate) {
  const int64_t K = elements_of<E>(depth), first = smaller(K, kMaxChain);
  multiply_piece<E>(rows, N, first, a, a_row, a_col, b, c, c_row, accumulate);
  for (int64_t k = first; k < K; k += kMaxChain) {
    multiply_piece<E>(rows, N, smaller(K - k, kMaxChain), a + k * a_col, a_row, a_col, b.from(k), c, c_row, true);
  }
}

// dst[r][0 ... padded_row) = src row r, zeros behind size.
template <typename T>
inline void copy_rows(int64_t rows, int64_t size, const T* src, int64_t src_row, Acc<T>* dst) {
  using A = Acc<T>;
  const int64_t dst_row = padded_row<A>(size);
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = src + r * src_row;
    A* to = dst + r * dst_row;
    int64_t c = 0;
    for (; c + kLanes<A> <= size; c += kLanes<A>) store(to + c, load(from + c));
    if (c < size) {
      store(to + c, load(from + c, size - c));
      c += kLanes<A>;
    }
    for (; c < dst_row; c += kLanes<A>) store(to + c, Vec<A>{});
  }
}

#if defined(TILEWRIGHT_ISA_HAS_BF16_DOT)
// The same as pairs along a row.
inline void copy_rows(int64_t rows, int64_t size, const BF16* src, int64_t src_row, BF16Pair* dst) {
  const int64_t dst_row = padded_row<BF16Pair>(size);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < dst_row; c += kLanes<BF16Pair>) {
      const int64_t left = larger(0, smaller(size - 2 * c, 2 * kLanes<BF16Pair>));
      store(dst + r * dst_row + c, load_pairs(src + r * src_row + 2 * c, left));
    }
  }
}
#endif

// Keep bits of a tile. Rows that hold all keys follow one another in logical order, so their bits are one run.
struct TileKeepBits {
  static constexpr int64_t kRowBytes = kMaxKeyBlock / kDropoutGroup + 1;
  uint8_t bits[kTileRows * kRowBytes + kKeepBitsPadding];
  int64_t offset[kTileRows];

  template <typename T>
  void fill(const AttentionProblem<T>& p, int64_t head, int64_t row, int64_t rows, int64_t key, int64_t n) {
    const int64_t first = (head * p.queries + row) * p.keys + key;
    if (n == p.keys) {
      offset[0] = fill_keep_bits_range(p.rule, first, rows * n, bits);
      for (int64_t r = 1; r < rows; ++r) offset[r] = offset[0] + r * n;
      return;
    }
    for (int64_t r = 0; r < rows; ++r) {
      // What a row writes behind its end the next row overwrites.
      offset[r] = 8 * r * kRowBytes + fill_keep_bits_range(p.rule, first + r * p.keys, n, bits + r * kRowBytes);
    }
  }
  uint32_t at(int64_t r, int64_t c) const { return load_bits(bits, offset[r] + c); }
};

}  // namespace
}  // namespace tilewright

// Operands of bfloat16 for processors that multiply two bfloat16 and add both to a float32: their elements are pairs of
// values that follow each other along K. The last pair of an odd K ends in a 0; a tile unit takes 16 pairs at once, so
// there zeros fill the last 16.
//
//   right operand, packed                       one vector
//   [panel][K / 2][kTileCols]                   | k, n | k + 1, n | k, n + 1 | k + 1, n + 1 | ...
//
// Included by gemm.h, whose tiles and loops are the same for them.
#pragma once

namespace tilewright {
namespace {

template <>
struct ElementTraits<BF16Pair> {
  using Sum = float;
  static constexpr int64_t kDepth = 2;
#if defined(TILEWRIGHT_ISA_HAS_TILE_UNIT)
  static constexpr int64_t kStep = 16;
#else
  static constexpr int64_t kStep = 1;
#endif
  static TILEWRIGHT_INLINE VecU32 load_along(const BF16* p) { return load_pairs(p); }
  static TILEWRIGHT_INLINE VecU32 load_along(const BF16* p, int64_t n) { return load_pairs(p, n); }
  static TILEWRIGHT_INLINE VecF32 add_to(VecF32 sum, VecU32 element) {
    constexpr uint32_t kOnes = 0x3f803f80u;  // a pair of bfloat16
    return fma(element, VecU32{} + kOnes, sum);
  }
  static TILEWRIGHT_INLINE void store_along(BF16Pair* row, int64_t c, VecF32 sums) {
    store_flushed(reinterpret_cast<BF16*>(row) + c, sums);
  }
  static TILEWRIGHT_INLINE void store_sums(float* p, VecF32 sums) { store(p, sums); }
  static TILEWRIGHT_INLINE void store_sums(float* p, VecF32 sums, int64_t n) { store(p, sums, n); }
  static TILEWRIGHT_INLINE void store_sums(BF16* p, VecF32 sums) { store_flushed(p, sums); }
  static TILEWRIGHT_INLINE void store_sums(BF16* p, VecF32 sums, int64_t n) {
    n == kLanes<float> ? store_flushed(p, sums) : store_flushed(p, sums, n);
  }
};
template <>
struct ProductElementOf<BF16> {
  using type = BF16Pair;
};

inline int64_t pairs_of(int64_t K) { return elements_of<BF16Pair>(K); }

// Panels first, first + 1, ... (kPanels of them) of an operand with contiguous rows: N columns from src on, fewer than
// the panels have in the last one. Four at once where there are as many: see pack_two_panels.
template <int kPanels>
void pack_pair_rows(int64_t K, int64_t N, const BF16* src, int64_t row, BF16Pair* panels) {
  constexpr int64_t kPanel = kTileCols<BF16Pair>, kStep = kLanes<BF16Pair>;
  const int64_t pairs = pairs_of(K);
  for (int64_t k = 0; k < pairs; ++k) {
    const BF16* even = 2 * k < K ? src + 2 * k * row : nullptr;
    const BF16* odd = 2 * k + 1 < K ? src + (2 * k + 1) * row : nullptr;
#pragma GCC unroll 8
    for (int64_t j = 0; j < kPanels * kPanel; j += kStep) {
      const int64_t width = N - j < kStep ? (N - j > 0 ? N - j : 0) : kStep;
      store(panels + (j / kPanel * pairs + k) * kPanel + j % kPanel,
            load_pairs_across(even == nullptr ? nullptr : even + j, odd == nullptr ? nullptr : odd + j, width));
    }
  }
}

// One vector of a panel's columns, n of them at most, from an operand whose columns are contiguous.
inline void pack_pair_columns(int64_t K, int64_t n, const BF16* src, int64_t stride, BF16Pair* dst) {
  constexpr int64_t kStep = kLanes<BF16Pair>;
  const int64_t pairs = pairs_of(K);
  for (int64_t k = 0; k < K; k += 2 * kStep) {
    VecU32 block[kStep];
    for (int64_t j = 0; j < kStep; ++j) {
      const BF16* from = src + j * stride + k;
      block[j] = j >= n ? VecU32{} : K - k >= 2 * kStep ? load_pairs(from) : load_pairs(from, K - k);
    }
    transpose<BF16Pair>(block);
    for (int64_t i = 0; i < kStep && k / 2 + i < pairs; ++i) {
      store(dst + (k / 2 + i) * kTileCols<BF16Pair>, block[i]);
    }
  }
}

// right[K, N], element (k, n) at src[k * row + n * col], into panels.
inline void pack_right(int64_t K, int64_t N, const BF16* src, int64_t row, int64_t col, BF16Pair* panels) {
  constexpr int64_t kPanel = kTileCols<BF16Pair>, kStep = kLanes<BF16Pair>;
  const int64_t pairs = pairs_of(K);
  int64_t n = 0;
  if (col == 1) {
    for (; n + 4 * kPanel <= N; n += 4 * kPanel) pack_pair_rows<4>(K, N - n, src + n, row, panels + n * pairs);
  }
  for (; n < N; n += kPanel) {
    BF16Pair* panel = panels + n * pairs;
    if (col == 1) {
      pack_pair_rows<1>(K, N - n, src + n, row, panel);
    } else if (row == 1) {
      for (int64_t j = 0; j < kPanel; j += kStep) {
        pack_pair_columns(K, N - n - j, src + (n + j) * col, col, panel + j);
      }
    } else {
      for (int64_t i = 0; i < pairs * kPanel; ++i) {
        const int64_t k = i / kPanel * 2, column = n + i % kPanel;
        const BF16* from = src + k * row + column * col;
        panel[i] = {column < N && k < K ? from[0] : BF16{}, column < N && k + 1 < K ? from[row] : BF16{}};
      }
    }
  }
}

}  // namespace
}  // namespace tilewright

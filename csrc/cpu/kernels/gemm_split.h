// float32 on a tile unit of bfloat16. A value is the sum of three bfloat16, exactly, and a product six of theirs:
//
//   x = x0 + x1 + x2              x0: x rounded; x1: x - x0 rounded; x2: the rest, which has 8 bits or less
//   x y = x0 y0 + x0 y1 + x1 y0 + x0 y2 + x1 y1 + x2 y0      but for 2^-24 of it, as float32's own rounding
//
// at 16 times the rate of float32's own products. The unit rounds less often than a chain of fmas: sums of 1024 are as
// exact as such chains of 192. (Henry, Tang and Heinecke, Leveraging the bfloat16 Artificial Intelligence Datatype For
// Higher-Precision Computations, 2019.)
//
// float16 is the sum of two, and a product all four of theirs: exact.
//
// Not the same: an infinity becomes NaN, and parts below 2^-126 become 0. Callers look at the operands and at the sums
// (cpu/conv2d_split.h, cpu/conv2d_winograd.h).
//
// Operands lie as those of pairs (gemm_tile_unit.h), one part behind the other.
#pragma once
#include "cpu/kernels/gemm.h"

namespace tilewright {
namespace {

inline TILEWRIGHT_INLINE VecF32 widened(__m256i rounded) {
  return bit_cast<VecF32>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
}

// n <= 16 values, whose parts go to part, part + part_step ...
template <int kParts>
inline TILEWRIGHT_INLINE void store_parts(BF16* part, int64_t part_step, VecF32 values, int64_t n) {
#pragma GCC unroll 3
  for (int i = 0; i < kParts; ++i, part += part_step) {
    const __m256i rounded = bit_cast<__m256i>(_mm512_cvtneps_pbh(values));
    _mm256_mask_storeu_epi16(part, mask16(n), rounded);
    values -= widened(rounded);
  }
}

// 32 values: whole lines, where they start on one (half lines take 1.3 times as long).
template <int kParts>
inline TILEWRIGHT_INLINE void store_parts_of_two(BF16* part, int64_t part_step, VecF32 low, VecF32 high) {
#pragma GCC unroll 3
  for (int i = 0; i < kParts; ++i, part += part_step) {
    const __m512i rounded = bit_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    _mm512_storeu_si512(part, rounded);
    low -= widened(_mm512_castsi512_si256(rounded));
    high -= widened(_mm512_extracti64x4_epi64(rounded, 1));
  }
}

// Steps of K whose products are added in a row, 1024 values; longer sums are cut and added apart.
constexpr int64_t kSplitChain = 32;

// Left rows of pairs, a_row apart, read in stretches; panels of right.
struct SplitOperands {
  const BF16Pair* a;
  int64_t a_part, a_row;
  const BF16Pair* b;
  int64_t b_part;
  int64_t longest_chain = kSplitChain;
};

// One step of K of a tile: small products first. Tiles 0 to 3 are sums, 4 and 5 left, 6 and 7 right.
template <int kParts, bool kTall, bool kWide>
inline TILEWRIGHT_INLINE void add_split_step(const SplitOperands& operands, const BF16Pair* a, const BF16Pair* b) {
  constexpr int64_t kPanelBytes = kTileCols<BF16Pair> * sizeof(BF16Pair);
  const int64_t a_bytes = operands.a_row * static_cast<int64_t>(sizeof(BF16Pair));
  const auto load_left = [&](int part) TILEWRIGHT_INLINE {
    const BF16Pair* from = a + part * operands.a_part;
    _tile_loadd(4, from, a_bytes);
    if constexpr (kTall) _tile_loadd(5, from + kUnitRows * operands.a_row, a_bytes);
  };
  const auto load_right = [&](int part) TILEWRIGHT_INLINE {
    const BF16Pair* from = b + part * operands.b_part;
    _tile_loadd(6, from, kPanelBytes);
    if constexpr (kWide) _tile_loadd(7, from + kUnitRows, kPanelBytes);
  };
  const auto multiply = []() TILEWRIGHT_INLINE {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kWide) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTall) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kTall && kWide) _tile_dpbf16ps(3, 5, 7);
  };
  if constexpr (kParts == 3) {
    load_left(2);
    load_right(0);
    multiply();
    load_left(1);
    multiply();
    load_right(1);
    multiply();
    load_left(0);
    multiply();
    load_right(2);
    multiply();
  } else {
    load_left(1);
    load_right(1);
    multiply();
    load_right(0);
    multiply();
    load_left(0);
    load_right(1);
    multiply();
  }
  load_right(0);
  multiply();
}

// Rows and columns that a tile writes to c.
struct SplitResult {
  float* c;
  int64_t c_row, rows, cols;
  bool accumulate;
};

// c (+)= left * right over `count` stretches of K elements each, as gemm_stretches.
template <int kParts, bool kTall, bool kWide>
void multiply_split(const SplitOperands& operands, int64_t K, const int32_t* stretches, int64_t count,
                    const SplitResult& result) {
  constexpr int64_t kRows = kTall ? 2 * kUnitRows : kUnitRows, kCols = kTileCols<BF16Pair>;
  const int64_t steps = K / kUnitStep * count, chains = (steps + operands.longest_chain - 1) / operands.longest_chain;
  const bool is_whole = result.rows == kRows && result.cols == (kWide ? kCols : kUnitRows);
  alignas(64) float sums[kRows * kCols];
  const BF16Pair* b = operands.b;
  configure_tiles(kTileRows);
  for (int64_t chain = 0, step = 0, s = 0, k = 0; chain < chains; ++chain) {
    finish_stores();
    _tile_zero(0);
    if constexpr (kWide) _tile_zero(1);
    if constexpr (kTall) _tile_zero(2);
    if constexpr (kTall && kWide) _tile_zero(3);
    for (; step < steps * (chain + 1) / chains; ++step, b += kUnitStep * kCols) {
      add_split_step<kParts, kTall, kWide>(operands, operands.a + stretches[s] + k, b);
      k += kUnitStep;
      if (k == K) {
        k = 0;
        ++s;
      }
    }
    const bool adds = result.accumulate || chain > 0, is_direct = is_whole && !adds;
    float* to = is_direct ? result.c : sums;
    const int64_t row = is_direct ? result.c_row : kCols, bytes = row * static_cast<int64_t>(sizeof(float));
    _tile_stored(0, to, bytes);
    if constexpr (kWide) _tile_stored(1, to + kUnitRows, bytes);
    if constexpr (kTall) _tile_stored(2, to + kUnitRows * row, bytes);
    if constexpr (kTall && kWide) _tile_stored(3, to + kUnitRows * row + kUnitRows, bytes);
    finish_stores();
    if (is_direct) continue;
    for (int64_t i = 0; i < result.rows; ++i) {
      float* out = result.c + i * result.c_row;
#pragma GCC unroll 2
      for (int64_t j = 0; j < (kWide ? kCols : kUnitRows); j += kUnitRows) {
        const int64_t n = smaller(result.cols - j, kUnitRows);
        if (n <= 0) break;
        const VecF32 sum = load(sums + i * kCols + j);
        store(out + j, adds ? load(out + j, n) + sum : sum, n);
      }
    }
  }
}

template <int kParts>
void multiply_split_tile(const SplitOperands& operands, int64_t K, const int32_t* stretches, int64_t count,
                         const SplitResult& result) {
  const bool tall = result.rows > kUnitRows, wide = result.cols > kUnitRows;
  const auto tile = tall ? (wide ? multiply_split<kParts, true, true> : multiply_split<kParts, true, false>)
                         : (wide ? multiply_split<kParts, false, true> : multiply_split<kParts, false, false>);
  tile(operands, K, stretches, count, result);
}

}  // namespace
}  // namespace tilewright

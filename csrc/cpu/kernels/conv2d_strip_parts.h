// What strips of images (conv2d_pairs_strip.h) hold of a value: bfloat16 as it is, float32 in three parts of bfloat16
// and float16 in two (gemm_split.h), a strip for each.
#pragma once
#include "cpu/kernels/conv2d_pairs.h"

namespace tilewright {
namespace {

// n values to dst and, of the other parts, part_step values behind it and each other.
inline void put_values(BF16* dst, int64_t, const BF16* src, int64_t n) { copy_values<false>(dst, src, n); }
template <typename T>
inline void clear_parts(BF16* dst, int64_t part_step, int64_t n) {
  for (int64_t part = 0; part < kPartsOf<T>; ++part) clear_values(dst + part * part_step, n);
}

// Left rows, read in stretches that start at offsets from `left`, by a panel of weights; parts are left_part and
// right_part pairs apart.
template <typename T>
struct StripProduct {
  const Pair* left;
  int64_t left_row, left_part;
  const Pair* right;
  int64_t right_part;
};

// The tile of that many rows; on a tile unit fewer take as long as all.
template <int kVectors, int kRows = kTileRows>
auto stretches_of_rows(int64_t rows) {
  if constexpr (kRows == 1 || kHasTileUnit) {
    return gemm_stretches<Pair, kRows, kVectors>;
  } else {
    return rows == kRows ? gemm_stretches<Pair, kRows, kVectors> : stretches_of_rows<kVectors, kRows - 1>(rows);
  }
}
inline void multiply_stretches(const StripProduct<BF16>& product, int64_t elements, const int32_t* offsets,
                               int64_t count, int64_t rows, float* sums, int64_t sums_row, int64_t cols) {
  const auto tile = cols > kLanes<float> ? stretches_of_rows<kTileVectors>(rows) : stretches_of_rows<1>(rows);
  tile(count, offsets, elements, product.left, product.left_row, product.right, sums, sums_row);
}

// What the sums of a convolution tell its caller: whether all are finite, and the largest.
struct SumCheck {
  VecF32 zeros{}, largest{};
  TILEWRIGHT_INLINE void add(VecF32 sum) {
    zeros = fma(sum, VecF32{}, zeros);
    largest = max(largest, max(sum, -sum));
  }
  // NaN if a sum is not finite.
  float magnitude() const { return reduce_max<float>(largest) + reduce_add<float>(zeros); }
};

#if defined(TILEWRIGHT_ISA_HAS_TILE_UNIT)
template <typename T>
inline void put_values(BF16* dst, int64_t part_step, const T* src, int64_t n) {
  constexpr int64_t kStep = kLanes<float>;
  int64_t i = 0;
  for (; i + 2 * kStep <= n; i += 2 * kStep) {
    store_parts_of_two<kPartsOf<T>>(dst + i, part_step, load(src + i), load(src + i + kStep));
  }
  for (; i < n; i += kStep) {
    const int64_t width = smaller(n - i, kStep);
    store_parts<kPartsOf<T>>(dst + i, part_step, load(src + i, width), width);
  }
}

template <typename T>
inline void multiply_stretches(const StripProduct<T>& product, int64_t elements, const int32_t* offsets, int64_t count,
                               int64_t, float* sums, int64_t sums_row, int64_t cols) {
  const SplitOperands operands{product.left, product.left_part, product.left_row, product.right, product.right_part};
  // Whole tiles: sums have room for them.
  const int64_t whole = cols > kLanes<float> ? kPairPanel : kLanes<float>;
  multiply_split_tile<kPartsOf<T>>(operands, elements, offsets, count, {sums, sums_row, kTileRows, whole, false});
}
#endif

}  // namespace
}  // namespace tilewright

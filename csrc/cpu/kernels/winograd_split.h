// Winograd's products of float32 matrices in parts of bfloat16 (gemm_split.h). Both operands are split as they are
// packed, in pairs of a k and the 16th behind it (conv2d_point_grad.h): the transforms know nothing of parts, and what
// they hand over through memory stays 4 bytes a value instead of 6.
#pragma once
#include "cpu/kernels/conv2d_point_grad.h"
#include "cpu/kernels/winograd_args.h"

namespace tilewright {
namespace {

// Steps of products in a row: 128 values. Points make the sums of tiles cancel, so that their rounding counts for more:
// errors in norm of the weights' gradient 2.4 to 3 times native's instead of 6 at gemm_split.h's 32 steps (5x5), of a
// forward of 512 channels 0.5 instead of 0.8 times; 2 steps take 5 % longer and bring another tenth.
constexpr int64_t kWinogradChain = 4;

inline PointScratch<float> winograd_split_sizes(const WinogradProduct<float>& product) {
  return PointScratch<float>((product.K + kPairStep - 1) / kPairStep * kPairStep, product.M, product.N);
}

inline int64_t winograd_split_bytes(const WinogradProduct<float>& product) {
  return winograd_split_sizes(product).size() * int64_t{sizeof(Pair)};
}

inline void winograd_multiply_split(const WinogradProduct<float>& product, int64_t point_begin, int64_t point_end,
                                    void* scratch) {
  const TileUnitScope unit;
  const PointScratch<float> sizes = winograd_split_sizes(product);
  Pair* left = static_cast<Pair*>(scratch);
  Pair* right = left + kPartsOf<float> * sizes.left_part;
  for (int64_t point = point_begin; point < point_end; ++point) {
    const float* from = product.left + point * product.left_point;
    pack_point_left(PointPixels<float>{from, product.left_col, product.left_row, product.K, product.M}, sizes, 0, left);
    from = product.right + point * product.right_point;
    for (int64_t f = 0; f < product.N; f += kPairPanel, from += kPairPanel * product.K) {
      pack_point_right(PointPixels<float>{from, kPairPanel, 1, product.K, smaller(kPairPanel, product.N - f)}, sizes, 0,
                       right + f / kPairPanel * sizes.right_panel);
    }
    add_products<float>(
        product.M, 1, product.N, 2 * sizes.pairs,
        {left, sizes.left_row, sizes.right_panel, sizes.left_part, sizes.right_part, kWinogradChain},
        [=](int64_t) { return right; }, PairGradSums{product.out + point * product.out_point, product.out_row, 0},
        product.accumulate);
  }
}

}  // namespace
}  // namespace tilewright

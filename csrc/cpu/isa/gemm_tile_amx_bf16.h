// Tile of pairs of bfloat16 on the tile unit: two by two tiles of 16 x 16 sums, which takes four of the eight tile
// registers; two each hold a step of left and of right. Four products of 16 cycles for four loads of 16 lines.
#pragma once
#include "cpu/kernels/matmul_args.h"

namespace tilewright {
namespace {
constexpr int kTileRows = 32;
constexpr int kTileVectors = 2;

// Those of avx512_bf16 but for the depth: a left tile of 32 rows x 256 pairs takes 32 of L1's 48 KB. A step of 16 pairs
// is what a tile holds of a row.
template <typename E>
constexpr MatmulBlocks kMatmulBlocks{256, 512, 384 * 384, 1024, 2, 16};
}  // namespace
}  // namespace tilewright

// Tile of pairs of bfloat16 on the tile unit: two by two tiles of 16 x 16 sums, which takes four of the eight tile
// registers; two each hold a step of left and of right. Four products of 16 cycles for four loads of 16 lines.
#pragma once
#include "cpu/kernels/matmul_args.h"

namespace tilewright {
namespace {
constexpr int kTileRows = 32;
constexpr int kTileVectors = 2;

// Those of avx512_bf16 but for the depth: a left tile of 32 rows x 192 pairs takes 24 of L1's 48 KB (1024^3 on two
// cores: blocks of 128 2.0, of 192 2.0, of 256 2.0, all of K in one 1.8 TFLOP/s; 4096x768x768 2.1, 2.3, 2.2, 2.0). A
// step of 16 pairs is what a tile holds of a row.
template <typename E>
constexpr MatmulBlocks kMatmulBlocks{192, 256, 384 * 384, 1024, 2, 16};
}  // namespace
}  // namespace tilewright

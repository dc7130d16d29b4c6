// Register tile on AVX2: 6 rows x 2 vectors = 12 accumulators, 2 registers of B and 2 of broadcast A: all 16.
#pragma once
#include "cpu/kernels/matmul_args.h"

namespace tilewright {
namespace {
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;
// Of conv2d's tiles (conv2d_rows.h), whose rows are pointers.
constexpr int kVectorRegisters = 16;
constexpr int kRowVectors = 2;

// L2 has 256 KB on the oldest of these machines, 512 KB and more on most: a right block takes 256 KB. With 384 x 384,
// as AVX-512 once had it, 1024^3 was 3 % slower.
template <typename E>
constexpr MatmulBlocks kMatmulBlocks =
    sizeof(E) == 4 ? MatmulBlocks{256, 256, 256 * 256, 1024} : MatmulBlocks{256, 256, 256 * 128, 1024};
}  // namespace
}  // namespace tilewright

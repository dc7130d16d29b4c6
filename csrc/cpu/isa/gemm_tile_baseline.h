// Register tile on 16 registers without a fused multiply-add: 4 rows x 2 vectors = 8 accumulators leave room for the
// products.
#pragma once
#include "cpu/kernels/matmul_args.h"

namespace tilewright {
namespace {
constexpr int kTileRows = 4;
constexpr int kTileVectors = 2;
// Of conv2d's tiles (conv2d_rows.h), whose rows are pointers.
constexpr int kVectorRegisters = 16;
constexpr int kRowVectors = 2;

// As on AVX2.
template <typename E>
constexpr MatmulBlocks kMatmulBlocks =
    sizeof(E) == 4 ? MatmulBlocks{256, 256, 256 * 256, 1024} : MatmulBlocks{256, 256, 256 * 128, 1024};
}  // namespace
}  // namespace tilewright

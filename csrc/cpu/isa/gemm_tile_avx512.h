// Register tile on AVX-512: 14 rows x 2 vectors = 28 accumulators, 2 registers of B and 1-2 of broadcast A: all 32.
// Two fma ports x latency 4 want 8 chains; 28 also bring loads down to 16 per 28 fmas.
#pragma once
#include "cpu/kernels/matmul_args.h"

namespace tilewright {
namespace {
constexpr int kTileRows = 14;
constexpr int kTileVectors = 2;
// Of conv2d's tiles (conv2d_rows.h), whose rows are pointers.
constexpr int kVectorRegisters = 32;
constexpr int kRowVectors = 4;

// L2 has 1 MB and more on these machines: a right block of float32 or float64 takes half of it. A left tile of 512
// float32 takes 28 of L1's 32 KB or more; blocks of 512 write C less often than those of 384 (1024^3 3 % faster).
template <typename E>
constexpr MatmulBlocks kMatmulBlocks =
    sizeof(E) == 4 ? MatmulBlocks{512, 512, 384 * 384, 1024} : MatmulBlocks{256, 256, 256 * 288, 1024};
}  // namespace
}  // namespace tilewright

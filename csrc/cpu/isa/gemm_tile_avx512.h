// Register tile on AVX-512: 14 rows x 2 vectors = 28 accumulators, 2 registers of B and 1-2 of broadcast A: all 32.
// Two fma ports x latency 4 want 8 chains; 28 also bring loads down to 16 per 28 fmas.
#pragma once
namespace tilewright {
namespace {
constexpr int kTileRows = 14;
constexpr int kTileVectors = 2;

// L2 has 1 MB and more on these machines: a right block of float32 or float64 takes half of it. L1 has 32 KB and more:
// a left tile takes two thirds or more. Blocks of K also keep rounding small: sums of 512 in a row, where native has
// two of 256, were 2 % faster, and 2.2 times as wrong.
template <typename E>
constexpr MatmulBlocks kMatmulBlocks =
    sizeof(E) == 4 ? MatmulBlocks{384, 384, 384 * 384, 1024} : MatmulBlocks{256, 256, 256 * 288, 1024};
}  // namespace
}  // namespace tilewright

// Register tile on AVX-512: 14 rows x 2 vectors = 28 accumulators, 2 registers of B and 1-2 of broadcast A: all 32.
// Two fma ports x latency 4 want 8 chains; 28 also bring loads down to 16 per 28 fmas.
#pragma once
namespace tilewright {
namespace {
constexpr int kTileRows = 14;
constexpr int kTileVectors = 2;
}  // namespace
}  // namespace tilewright

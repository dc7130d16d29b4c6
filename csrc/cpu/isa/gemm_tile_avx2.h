// Register tile on AVX2: 6 rows x 2 vectors = 12 accumulators, 2 registers of B and 2 of broadcast A: all 16.
#pragma once
namespace tilewright {
namespace {
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;
}  // namespace
}  // namespace tilewright

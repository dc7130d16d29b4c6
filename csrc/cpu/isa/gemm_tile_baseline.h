// Register tile on 16 registers without a fused multiply-add: 4 rows x 2 vectors = 8 accumulators leave room for the
// products.
#pragma once
namespace tilewright {
namespace {
constexpr int kTileRows = 4;
constexpr int kTileVectors = 2;
}  // namespace
}  // namespace tilewright

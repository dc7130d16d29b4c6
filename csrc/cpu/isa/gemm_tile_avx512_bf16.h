// Register tile of pairs of bfloat16: that of AVX-512, for a pair is as wide as a float32. vdpbf16ps has a latency of 6
// and one port's throughput, so 28 chains are enough too.
#pragma once
#include "cpu/isa/gemm_tile_avx512.h"
#include "cpu/isa/vec_avx512_bf16.h"

namespace tilewright {
namespace {
// Those of float32 by the byte. Up to 1024 values of K in one block: their sums are rounded from registers. Longer ones
// in blocks of 768: 1024 rows of accumulators between them take 1.2 MB (256 rows: 1 to 4 % slower).
template <>
constexpr MatmulBlocks kMatmulBlocks<BF16Pair>{384, 512, 384 * 384, 1024, 2};
}  // namespace
}  // namespace tilewright

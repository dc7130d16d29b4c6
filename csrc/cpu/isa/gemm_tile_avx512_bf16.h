// Register tile of pairs of bfloat16: that of AVX-512, for a pair is as wide as a float32. vdpbf16ps has a latency of 6
// and one port's throughput, so 28 chains are enough too.
#pragma once
#include "cpu/isa/gemm_tile_avx512.h"

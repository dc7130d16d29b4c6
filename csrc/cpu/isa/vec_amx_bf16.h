// AVX-512 with bfloat16 and AMX, whose tile unit multiplies 16 x 32 by 32 x 16 bfloat16 in 16 cycles. Vectors are those
// of avx512_bf16; the register tile of pairs is made of tiles (kernels/gemm_tile_unit.h). Denormals are taken for 0 and
// sums rounded as by vdpbf16ps.
#pragma once
#include "cpu/isa/vec_avx512_bf16.h"
#define TILEWRIGHT_ISA_HAS_TILE_UNIT 1

// One translation unit per ISA and kernel family: CMakeLists.txt compiles this file once for each pair, with that ISA's
// flags and
//   TILEWRIGHT_ISA (avx512, ...), TILEWRIGHT_FAMILY (layer_norm, ...), and the headers below.
//
// Everything it includes lies in an anonymous namespace, and it exports one symbol: an inline function with external
// linkage would be merged by the linker with the copy of another ISA, and an older machine would meet an instruction it
// does not have (tests/test_kernel_table.py looks at the symbols). No torch headers, no std templates, for the same
// reason.
#include "cpu/kernels/typed_kernels.h"
#include TILEWRIGHT_ISA_HEADER
#include TILEWRIGHT_TILE_HEADER
#include TILEWRIGHT_FAMILY_HEADER

#define TILEWRIGHT_JOIN_2(a, b) a##b
#define TILEWRIGHT_JOIN(a, b) TILEWRIGHT_JOIN_2(a, b)
#define TILEWRIGHT_FILL TILEWRIGHT_JOIN(fill_, TILEWRIGHT_FAMILY)
#define TILEWRIGHT_EXPORT \
  TILEWRIGHT_JOIN(TILEWRIGHT_JOIN(tilewright_fill_, TILEWRIGHT_FAMILY), TILEWRIGHT_JOIN(_, TILEWRIGHT_ISA))

extern "C" void TILEWRIGHT_EXPORT(tilewright::KernelTable* table) {
  tilewright::TILEWRIGHT_FILL(table->bf16);
#if defined(TILEWRIGHT_FILLS_SPLIT)  // those that are computed in parts of bfloat16
  tilewright::TILEWRIGHT_FILL(table->f32);
  tilewright::TILEWRIGHT_FILL(table->f16);
#endif
#if !defined(TILEWRIGHT_ISA_HAS_BF16_DOT)  // the others are then those of AVX-512
  tilewright::TILEWRIGHT_FILL(table->f32);
  tilewright::TILEWRIGHT_FILL(table->f64);
  tilewright::TILEWRIGHT_FILL(table->f16);
#endif
}

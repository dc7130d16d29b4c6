// The multiply-add peak of one core: what benchmarks hold a kernel's GFLOP/s against. No memory is touched.
//
// kChains accumulators, each a chain of dependent multiply-adds: latency (4 cycles, 5 to 6 for the bfloat16 dot
// product) times two ports wants 8 to 12, and 12 still fit the 16 registers of AVX2 with both factors. bfloat16 is
// measured as the dot-product instruction where the CPU has it, because that is what a bfloat16 matrix product can
// reach.
#pragma once

namespace tilewright {
namespace {

constexpr int kChains = 12;

#if defined(TILEWRIGHT_ISA_IS_AVX512)
// Pairs of bfloat16 products added to each float32 lane: four operations per lane. Written as assembly, because the
// unit is compiled for AVX-512 without its bfloat16 extension and must run where that is missing. Every loop over the
// sums is unrolled, or they would live in memory.
inline int64_t multiply_add_bf16_dot(int64_t steps, float* sink) {
  VecF32 sums[kChains]{};
  const VecF32 ones = bit_cast<VecF32>(VecU32{} + 0x3f803f80u);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) asm volatile("vdpbf16ps %1, %1, %0" : "+v"(sums[i]) : "v"(ones));
  }
  VecF32 total{};
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) total += sums[i];
  *sink = reduce_add<float>(total);
  return steps * kChains * kLanes<float> * 4;
}
#endif

template <typename T>
int64_t multiply_add(int64_t steps, Acc<T>* sink) {
  using A = Acc<T>;
#if defined(TILEWRIGHT_ISA_IS_AVX512)
  if constexpr (__is_same(T, BF16)) {
    if (__builtin_cpu_supports("avx512bf16")) return multiply_add_bf16_dot(steps, sink);
  }
#endif
  Vec<A> sums[kChains]{};
  const Vec<A> factor = rounded(broadcast<A>(1)), term = rounded(broadcast<A>(1));
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = rounded(fma(sums[i], factor, term));
  }
  Vec<A> total{};
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) total += sums[i];
  *sink = reduce_add<A>(total);
  return steps * kChains * kLanes<A> * 2;
}

template <typename T>
void fill_roofline(TypedKernels<T>& table) {
  table.roofline = {multiply_add<T>};
}

}  // namespace
}  // namespace tilewright

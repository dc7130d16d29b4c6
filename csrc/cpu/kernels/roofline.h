// The multiply-add peak of one core: what benchmarks hold a kernel's GFLOP/s against. No memory is touched.
//
// kChains accumulators, each a chain of dependent multiply-adds: latency (4 cycles, 5 to 6 for the bfloat16 dot
// product) times two ports wants 8 to 12, and 12 still fit the 16 registers of AVX2 with both factors. The elements are
// those of matrix products: pairs of bfloat16, or tiles of them, where the ISA has them.
#pragma once
#include "cpu/kernels/gemm.h"

namespace tilewright {
namespace {

constexpr int kChains = 12;

template <typename E>
inline E one_of() {
  return E(1);
}
inline VecF32 next_sum(VecF32 sum, VecF32 one) { return fma(sum, one, one); }
inline VecF64 next_sum(VecF64 sum, VecF64 one) { return fma(sum, one, one); }
#if defined(TILEWRIGHT_ISA_HAS_BF16_DOT)
template <>
inline BF16Pair one_of<BF16Pair>() {
  return bit_cast<BF16Pair>(0x3f803f80u);
}
inline VecF32 next_sum(VecF32 sum, VecU32 ones) { return fma(ones, ones, sum); }
#endif

template <typename T>
int64_t multiply_add(int64_t steps, Acc<T>* sink) {
  using A = Acc<T>;
  using E = ProductElement<T>;
  Vec<A> sums[kChains]{};
  const Vec<E> one = rounded(broadcast<E>(one_of<E>()));
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = rounded(next_sum(sums[i], one));
  }
  Vec<A> total{};
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) total += sums[i];
  *sink = reduce_add<A>(total);
  return steps * kChains * kLanes<A> * kDepthOf<E> * 2;
}

#if defined(TILEWRIGHT_ISA_HAS_TILE_UNIT)
// Four products of zeros, whose sums are independent, take as long as any others.
template <>
int64_t multiply_add<BF16>(int64_t steps, float* sink) {
  const TileUnitScope unit;
  alignas(64) float sums[kUnitRows * kUnitRows];
  configure_tiles(2 * kUnitRows);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  const int64_t rounds = steps / 4;  // a round takes 64 cycles
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  *sink = sums[0];
  return rounds * 4 * kUnitRows * kUnitRows * kUnitStep * 4;
}
#endif

template <typename T>
void fill_roofline(TypedKernels<T>& table) {
  table.roofline = {multiply_add<T>};
}

}  // namespace
}  // namespace tilewright

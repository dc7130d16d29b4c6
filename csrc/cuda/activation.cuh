// relu, gelu (exact), gelu_tanh, silu on one accumulator. The formulas are those of csrc/cpu/kernels/activation.h: no
// cancellation on either side, NaN stays NaN, infinities give what native's formulas give.
#pragma once
#include <cuda_runtime.h>

#include "cpu/kernels/activation_args.h"

namespace tilewright::gpu {

constexpr double kRootTwoOverPi = 0.79788456080286535588, kRootHalf = 0.70710678118654752440, kTanhCubic = 0.044715;

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float complementary_error(float x) { return erfcf(x); }
__device__ __forceinline__ double complementary_error(double x) { return erfc(x); }

template <typename A>
__device__ __forceinline__ A sigmoid(A x) {
  return A(1) / (A(1) + exponential(-x));
}

template <typename A>
__device__ __forceinline__ A activate(Activation kind, A x) {
  switch (kind) {
    case Activation::kRelu:
      return x < A(0) ? A(0) : x;
    case Activation::kGelu:
      return x * (A(0.5) * complementary_error(-x * A(kRootHalf)));
    case Activation::kGeluTanh:
      return x * sigmoid(A(2 * kRootTwoOverPi) * (x + A(kTanhCubic) * x * x * x));
    case Activation::kSilu:
      return x * sigmoid(x);
    default:
      return x;
  }
}

}  // namespace tilewright::gpu

// relu, relu6, gelu (exact), gelu_tanh, silu and their derivatives, element by element in the accumulation type. The
// formulas are those of csrc/cpu/kernels/activation.h. NaN stays NaN; infinities give what native's formulas give.
//
// What is small is computed as such, never as a difference from 1: Phi(x) is normcdf, which is exact in both tails, and
// sigma(x) sigma(-x) takes its small factor from the exponential.
#pragma once
#include "cpu/kernels/activation_args.h"
#include "cuda/vec.cuh"

namespace tilewright::gpu {

constexpr double kRootTwoOverPi = 0.79788456080286535588, kRootHalfOverPi = 0.39894228040143267794,
                 kTanhCubic = 0.044715;

template <typename A>
__device__ __forceinline__ A relu(A x) {
  return x < A(0) ? A(0) : x;
}

template <typename A>
__device__ __forceinline__ A relu6(A x) {
  return x > A(6) ? A(6) : relu(x);
}

// Twice what tanh is taken of.
template <typename A>
__device__ __forceinline__ A gelu_tanh_argument(A x) {
  return A(2 * kRootTwoOverPi) * (x + A(kTanhCubic) * x * x * x);
}

template <typename A>
__device__ __forceinline__ A gelu(A x) {
  return x * normcdf(x);
}

template <typename A>
__device__ __forceinline__ A gelu_tanh(A x) {
  return x / (A(1) + exp(-gelu_tanh_argument(x)));
}

template <typename A>
__device__ __forceinline__ A silu(A x) {
  return x / (A(1) + exp(-x));
}

template <typename A>
__device__ __forceinline__ A gelu_slope(A x) {
  constexpr A kLimit = sizeof(A) == 4 ? A(14.5) : A(39);  // beyond it exp(-x^2/2) is 0
  const A size = min(abs(x), kLimit), square = size * size;
  // What rounding took from the square would grow with x.
  const A lost = fma(size, size, -square);
  A gauss = exp(A(-0.5) * square);
  gauss -= A(0.5) * lost * gauss;
  return normcdf(x) + x * gauss * A(kRootHalfOverPi);
}

// sigma(x) sigma(-x), and sigma(x) in `value`.
template <typename A>
__device__ __forceinline__ A sigmoid_slope(A x, A& value) {
  const A decay = exp(-abs(x)), large = A(1) / (A(1) + decay), small = decay * large;
  value = x < A(0) ? small : large;
  return large * small;
}

template <typename A>
__device__ __forceinline__ A gelu_tanh_slope(A x) {
  const A inner = A(2 * kRootTwoOverPi) * (A(1) + A(3 * kTanhCubic) * x * x);
  A sigmoid;
  const A slope = sigmoid_slope(gelu_tanh_argument(x), sigmoid);
  return sigmoid + x * slope * inner;
}

template <typename A>
__device__ __forceinline__ A silu_slope(A x) {
  A sigmoid;
  const A slope = sigmoid_slope(x, sigmoid);
  return sigmoid + x * slope;
}

template <int N, int M, typename A, typename Body>
__device__ __forceinline__ void map_elements(A (&values)[N][M], const Body& body) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int j = 0; j < M; ++j) values[i][j] = body(values[i][j], i, j);
  }
}

// values = act(values)
template <int N, int M, typename A>
__device__ __forceinline__ void activate(Activation kind, A (&values)[N][M]) {
  switch (kind) {
    case Activation::kRelu:
      return map_elements(values, [](A x, int, int) { return relu(x); });
    case Activation::kRelu6:
      return map_elements(values, [](A x, int, int) { return relu6(x); });
    case Activation::kGelu:
      return map_elements(values, [](A x, int, int) { return gelu(x); });
    case Activation::kGeluTanh:
      return map_elements(values, [](A x, int, int) { return gelu_tanh(x); });
    case Activation::kSilu:
      return map_elements(values, [](A x, int, int) { return silu(x); });
    default:
      return;
  }
}

// dy = dy * act'(x). Where relu and relu6 stop a gradient, they stop Inf and NaN upstream too, as native's do.
template <int N, int M, typename A>
__device__ __forceinline__ void multiply_by_slope(Activation kind, const A (&x)[N][M], A (&dy)[N][M]) {
  switch (kind) {
    case Activation::kRelu:
      return map_elements(dy, [&](A g, int i, int j) { return x[i][j] <= A(0) ? A(0) : g; });
    case Activation::kRelu6:
      return map_elements(dy, [&](A g, int i, int j) { return x[i][j] <= A(0) || x[i][j] >= A(6) ? A(0) : g; });
    case Activation::kGelu:
      return map_elements(dy, [&](A g, int i, int j) { return g * gelu_slope(x[i][j]); });
    case Activation::kGeluTanh:
      return map_elements(dy, [&](A g, int i, int j) { return g * gelu_tanh_slope(x[i][j]); });
    case Activation::kSilu:
      return map_elements(dy, [&](A g, int i, int j) { return g * silu_slope(x[i][j]); });
    default:
      return;
  }
}

}  // namespace tilewright::gpu

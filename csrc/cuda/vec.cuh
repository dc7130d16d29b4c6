// Elements in registers: N neighbours of T moved by one access of N * sizeof(T) bytes (16 at most) and computed with in
// the accumulation type.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common/types.h"

namespace tilewright::gpu {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(BF16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ __forceinline__ float widen(F16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <typename T>
__device__ __forceinline__ T narrow(Acc<T> x) {
  return x;
}
template <>
__device__ __forceinline__ BF16 narrow<BF16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ __forceinline__ F16 narrow<F16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// A product that the compiler does not contract with what is added to it.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

// The widest access: elements of T in 16 bytes.
template <typename T>
constexpr int kWidest = 16 / static_cast<int>(sizeof(T));

template <typename T, int N>
__device__ __forceinline__ void unpack(const Pack<T, N>& pack, Acc<T> (&out)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = widen(pack.value[i]);
}

// An access as it lies in memory; from is aligned to N elements.
template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

// out[i] = from[i]; from is aligned to N elements.
template <int N, typename T>
__device__ __forceinline__ void load(const T* from, Acc<T> (&out)[N]) {
  unpack(load_pack<N>(from), out);
}

template <int N, typename T>
__device__ __forceinline__ void store(T* to, const Acc<T> (&value)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.value[i] = narrow<T>(value[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Weight or bias of an op on T: in T itself, or in the accumulation type beside a 16-bit T. Null: absent.
template <typename T>
struct Parameter {
  const void* data;
  bool wide;

  template <int N>
  __device__ __forceinline__ void read(int64_t at, Acc<T> absent, Acc<T> (&out)[N]) const {
    if (data == nullptr) {
#pragma unroll
      for (int i = 0; i < N; ++i) out[i] = absent;
    } else if (wide) {
      const auto* from = static_cast<const Acc<T>*>(data) + at;
#pragma unroll
      for (int i = 0; i < N; ++i) out[i] = from[i];
    } else {
      load<N>(static_cast<const T*>(data) + at, out);
    }
  }
};

// Where a parameter's gradient goes, in the parameter's dtype. Null: not wanted.
template <typename T>
struct ParameterGradient {
  void* data;
  bool wide;

  __device__ __forceinline__ void write(int64_t at, Acc<T> value) const {
    if (data == nullptr) return;
    if (wide) {
      static_cast<Acc<T>*>(data)[at] = value;
    } else {
      static_cast<T*>(data)[at] = narrow<T>(value);
    }
  }
};

}  // namespace tilewright::gpu

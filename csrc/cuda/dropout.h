// dropout on the GPU, and what is fused with it element by element:
//   y = residual + (x + bias) * (keep ? scale : 0)
// common/philox.h says which elements are kept. The seed stays on the device: kernels read it through its pointer.
#pragma once
#include "common/philox.h"
#include "common/types.h"
#include "cuda/launch.h"

namespace tilewright::gpu {

// A call's dropout: p as the host sees it, and where the device finds the seed.
template <typename A>
struct Dropout {
  const int64_t* seed;  // null: nothing is dropped
  uint32_t threshold;   // an element is dropped with probability threshold / 2^32
  bool everything;      // p = 1; threshold is 0 and scale 0
  A scale;
};

template <typename A>
Dropout<A> make_dropout(const int64_t* seed, double p) {
  if (seed == nullptr) return {nullptr, 0, false, A(1)};
  const DropoutRate rate = dropout_rate(p);
  return {seed, rate.hi << 16 | rate.lo, drops_everything(rate), static_cast<A>(rate.scale)};
}

// x, residual and y lie in memory alike.
template <typename T>
struct DropoutArgs {
  const T* x;
  const T* residual;  // or null: 0
  T* y;               // may be x
  int64_t numel;
  Dropout<Acc<T>> dropout;
  // Contiguous layout only:
  const void* bias;     // [cols] or null: 0
  bool wide_bias;       // in Acc<T>, else in T
  int64_t cols;         // size of the last dimension; read with bias only
  uint8_t* keep;        // where the keep bits go (ops/dropout.h), or null
  const uint8_t* kept;  // the keep bits, made before, or null
};

// Memory [batch, minor, major] of a tensor whose logical order is [batch, major, minor].
struct TransposedLayout {
  int64_t batch, major, minor;
};

// Any other dense layout: sizes and element strides in logical order.
constexpr int kMaxPermutedDims = 8;
struct PermutedLayout {
  int dims;
  int64_t sizes[kMaxPermutedDims], strides[kMaxPermutedDims];
};

template <typename T>
Status dropout_contiguous(const DropoutArgs<T>& args, const Launch& launch);
template <typename T>
Status dropout_transposed(const DropoutArgs<T>& args, const TransposedLayout& layout, const Launch& launch);
template <typename T>
Status dropout_permuted(const DropoutArgs<T>& args, const PermutedLayout& layout, const Launch& launch);

// mask[i] = 1 where logical element i is kept, else 0; mask is aligned to 8 bytes.
Status dropout_mask(const Dropout<float>& dropout, uint8_t* mask, int64_t numel, const Launch& launch);

// dx = dy * keep * scale, dbias = the sum of dx over rows.
template <typename T>
struct DropoutBiasBackwardArgs {
  const T* dy;        // [rows, cols]
  T* dx;              // [rows, cols] or null: not wanted
  T* dbias;           // [cols]
  Acc<T>* partials;   // [dropout_bias_partial_rows(rows, cols), cols]
  int64_t rows, cols;
  Dropout<Acc<T>> dropout;
};

// A function of the shape alone, so that the order of summation is, too.
int64_t dropout_bias_partial_rows(int64_t rows, int64_t cols);

template <typename T>
Status dropout_bias_backward(const DropoutBiasBackwardArgs<T>& args, const Launch& launch);

}  // namespace tilewright::gpu

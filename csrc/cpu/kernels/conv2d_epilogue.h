// The end of a convolution, applied to a block of sums while it is in cache: activation(sum + bias + residual).
#pragma once
#include "cpu/kernels/activation.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

// Out of line: its registers and code would weigh on the loops of everybody who uses none.
template <typename A>
__attribute__((noinline)) Vec<A> activate_out_of_line(Activation kind, Vec<A> v) {
  return activate<A>(kind, v);
}

// `sum` already has its bias; place: offset of its first lane in out.
template <typename T>
inline TILEWRIGHT_INLINE Vec<Acc<T>> finish_vector(const ConvEpilogue<T>& epilogue, Vec<Acc<T>> sum, int64_t place,
                                                   int64_t n) {
  using A = Acc<T>;
  if (epilogue.residual != nullptr) sum += load(epilogue.residual + place, n);
  if (epilogue.activation == Activation::kNone) return sum;
  if (epilogue.activation == Activation::kRelu) return relu(sum);
  if (epilogue.activation == Activation::kRelu6) return relu6<A>(sum);
  if (epilogue.pre != nullptr) store(epilogue.pre + place, sum, n);
  return activate_out_of_line<A>(epilogue.activation, sum);
}

// Rows of n sums, contiguous in the block, to place in out. bias: one value for each of them, or null beside one value
// for all. The element stride of out may be larger than 1 where the epilogue is empty (strided data gradients).
template <typename T>
inline void finish_row(const ConvEpilogue<T>& epilogue, const Acc<T>* block, int64_t n, const Acc<T>* bias,
                       Acc<T> row_bias, int64_t place, T* out, int64_t out_stride) {
  using A = Acc<T>;
  const auto value = [&](int64_t i, int64_t width) TILEWRIGHT_INLINE {
    Vec<A> v = load(block + i, width) + row_bias;
    if (bias != nullptr) v += load(bias + i, width);
    return finish_vector<T>(epilogue, v, place + i, width);
  };
  if (out_stride == 1) {
    return for_each_vector<A>(n, [&](int64_t i, int64_t width) TILEWRIGHT_INLINE {
      ElementTraits<ProductElement<T>>::store_sums(out + place + i, value(i, width), width);
    });
  }
  for_each_vector<A>(n, [&](int64_t i, int64_t width) TILEWRIGHT_INLINE {
    T lanes[kLanes<A>];
    store(lanes, value(i, width));
    for (int64_t j = 0; j < width; ++j) out[place + (i + j) * out_stride] = lanes[j];
  });
}

// At most a vector of pixels, rows of sums row_of(i) for i < count, of at most a vector of filters, to planes where the
// pixels are neighbours from `place` on: transposed in registers. bias: of the first filter on, or null.
template <typename T, typename RowOf>
inline TILEWRIGHT_INLINE void finish_transposed(const ConvEpilogue<T>& epilogue, const RowOf& row_of, int64_t count,
                                                int64_t filters, const Acc<T>* bias, int64_t place, T* out,
                                                int64_t c_stride) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  Vec<A> block[kStep];
  for (int64_t i = 0; i < kStep; ++i) block[i] = i < count ? load(row_of(i), filters) : Vec<A>{};
  transpose<A>(block);
  for (int64_t j = 0; j < filters; ++j) {
    const int64_t at = place + j * c_stride;
    const Vec<A> v = finish_vector<T>(epilogue, block[j] + (bias != nullptr ? bias[j] : A(0)), at, count);
    count == kStep ? store(out + at, v) : store(out + at, v, count);
  }
}

}  // namespace
}  // namespace tilewright

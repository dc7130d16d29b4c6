// Layer norm over contiguous rows.
//   forward   y = (x - mean) * rstd * weight + bias,  rstd = 1 / sqrt(var + eps), var biased
//   backward  xhat = (x - mean) * rstd, g = dy * weight:  dx = rstd * (g - (sum g + xhat * sum(g * xhat)) / cols),
//             dweight += sum over rows of dy * xhat,  dbias += sum over rows of dy
//
// Statistics take two centred passes (sum, then sum of (x - mean)^2) while the row is in cache: as accurate as Welford
// and without its dependent chain. Sums are in Acc. Forward reads x once from memory and twice from cache; backward
// reads dy and x once from memory and once from cache.
#pragma once
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

template <typename T>
void layer_norm_forward_rows(const LayerNormForwardArgs<T>& args, int64_t row_begin, int64_t row_end) {
  using A = Acc<T>;
  const int64_t cols = args.cols;
  const A* weight = args.weight;
  const A* bias = args.bias;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = args.x + row * cols;
    T* y = args.y + row * cols;
    const auto value = [x](int64_t c, int64_t n) TILEWRIGHT_INLINE { return load(x + c, n); };
    const A mean = sum_terms<A>(cols, value) / static_cast<A>(cols);
    const auto square = [x, mean](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      const Vec<A> centred = load(x + c, n) - mean;
      return centred * centred;
    };
    const A variance = sum_terms<A>(cols, square) / static_cast<A>(cols);
    const A rstd = A(1) / (sizeof(A) == 4 ? __builtin_sqrtf(variance + args.eps) : __builtin_sqrt(variance + args.eps));
    args.mean[row] = mean;
    args.rstd[row] = rstd;
    for_each_vector<A>(cols, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      Vec<A> v = (load(x + c, n) - mean) * rstd;
      if (weight != nullptr) v *= load(weight + c, n);
      if (bias != nullptr) v += load(bias + c, n);
      store(y + c, v, n);
    });
  }
}

// kRows rows at once share each load and store of the dweight and dbias accumulators.
template <typename T, int kRows, bool kInputGrad, bool kParameterGrads>
inline void layer_norm_backward_block(const LayerNormBackwardArgs<T>& args, int64_t row) {
  using A = Acc<T>;
  const int64_t cols = args.cols;
  const A* weight = args.weight;
  const T* dy = args.dy + row * cols;
  const T* x = args.x + row * cols;
  Vec<A> sum_x[kRows] = {}, sum_g[kRows] = {}, sum_gx[kRows] = {};
  for_each_vector<A>(cols, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    const Vec<A> w = weight != nullptr ? load(weight + c, n) : broadcast<A>(1);
    Vec<A> dweight{}, dbias{};
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec<A> d = load(dy + r * cols + c, n);
      const Vec<A> xhat = keep_first((load(x + r * cols + c, n) - args.mean[row + r]) * args.rstd[row + r], n);
      const Vec<A> g = rounded(d * w);
      sum_x[r] += xhat;
      sum_g[r] += g;
      sum_gx[r] = fma(g, xhat, sum_gx[r]);
      dweight = fma(d, xhat, dweight);
      dbias += d;
    }
    if constexpr (kParameterGrads) {
      store(args.dweight + c, load(args.dweight + c, n) + dweight, n);
      store(args.dbias + c, load(args.dbias + c, n) + dbias, n);
    }
  });
  for (int r = 0; r < kRows; ++r) {
    // The saved mean is rounded, so xhat has a mean of its own, by which rows whose values differ by little would lose
    // digits. With xhat - mean_x for xhat they keep them; dweight, summed above without, is mended where it matters.
    const A mean_x = reduce_add<A>(sum_x[r]) / static_cast<A>(cols);
    constexpr A kNegligible = sizeof(A) == 4 ? A(0x1p-20) : A(0x1p-49);
    if (kParameterGrads && (mean_x > kNegligible || mean_x < -kNegligible)) {
      for_each_vector<A>(cols, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
        store(args.dweight + c, load(args.dweight + c, n) - load(dy + r * cols + c, n) * mean_x, n);
      });
    }
    if constexpr (kInputGrad) {
      T* dx = args.dx + (row + r) * cols;
      const A mean = args.mean[row + r], rstd = args.rstd[row + r];
      const A mean_g = reduce_add<A>(sum_g[r]) / static_cast<A>(cols);
      const A mean_gx = reduce_add<A>(sum_gx[r]) / static_cast<A>(cols) - mean_x * mean_g;
      for_each_vector<A>(cols, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
        const Vec<A> w = weight != nullptr ? load(weight + c, n) : broadcast<A>(1);
        const Vec<A> xhat = (load(x + r * cols + c, n) - mean) * rstd;
        const Vec<A> g = rounded(load(dy + r * cols + c, n) * w);
        store(dx + c, (g - mean_g - (xhat - mean_x) * mean_gx) * rstd, n);
      });
    }
  }
}

template <typename T, bool kInputGrad, bool kParameterGrads>
void layer_norm_backward_range(const LayerNormBackwardArgs<T>& args, int64_t row_begin, int64_t row_end) {
  int64_t row = row_begin;
  for (; row + 4 <= row_end; row += 4) layer_norm_backward_block<T, 4, kInputGrad, kParameterGrads>(args, row);
  for (; row < row_end; ++row) layer_norm_backward_block<T, 1, kInputGrad, kParameterGrads>(args, row);
}

template <typename T>
void layer_norm_backward_rows(const LayerNormBackwardArgs<T>& args, int64_t row_begin, int64_t row_end) {
  if (args.dx != nullptr && args.dweight != nullptr)
    return layer_norm_backward_range<T, true, true>(args, row_begin, row_end);
  if (args.dx != nullptr) return layer_norm_backward_range<T, true, false>(args, row_begin, row_end);
  layer_norm_backward_range<T, false, true>(args, row_begin, row_end);
}

template <typename T>
void fill_layer_norm(TypedKernels<T>& table) {
  table.layer_norm = {layer_norm_forward_rows<T>, layer_norm_backward_rows<T>};
}

}  // namespace
}  // namespace tilewright

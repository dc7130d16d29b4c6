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

// Rows of up to so many columns are taken four at a time, each with one chain of sums: beside one another they hide the
// latency of sums, square root and division, which is what short rows wait for. Longer rows have four chains each, and
// are read one after the other: four streams at once cost the prefetcher 1.6x at 768 columns.
constexpr int64_t kShortRow = 512;

template <typename A>
inline A reciprocal_deviation(A variance, A eps) {
  return A(1) / (sizeof(A) == 4 ? __builtin_sqrtf(variance + eps) : __builtin_sqrt(variance + eps));
}

template <bool kStream, typename T>
inline void normalise_row(const LayerNormForwardArgs<T>& args, int64_t row, Acc<T> mean, Acc<T> rstd) {
  using A = Acc<T>;
  const T* x = args.x + row * args.cols;
  T* y = args.y + row * args.cols;
  const A *weight = args.weight, *bias = args.bias;
  args.mean[row] = mean;
  args.rstd[row] = rstd;
  for_each_vector<A>(args.cols, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    Vec<A> v = (load(x + c, n) - mean) * rstd;
    if (weight != nullptr) v *= load(weight + c, n);
    if (bias != nullptr) v += load(bias + c, n);
    store_or_stream<kStream>(y + c, v, n);
  });
}

template <bool kStream, typename T>
inline void layer_norm_forward_row(const LayerNormForwardArgs<T>& args, int64_t row) {
  using A = Acc<T>;
  const T* x = args.x + row * args.cols;
  const auto value = [x](int64_t c, int64_t n) TILEWRIGHT_INLINE { return load(x + c, n); };
  const A mean = sum_terms<A>(args.cols, value) / static_cast<A>(args.cols);
  const auto square = [x, mean](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    const Vec<A> centred = load(x + c, n) - mean;
    return centred * centred;
  };
  const A variance = sum_terms<A>(args.cols, square) / static_cast<A>(args.cols);
  normalise_row<kStream>(args, row, mean, reciprocal_deviation(variance, args.eps));
}

template <int kRows, bool kStream, typename T>
inline void layer_norm_forward_short_rows(const LayerNormForwardArgs<T>& args, int64_t row) {
  using A = Acc<T>;
  const int64_t cols = args.cols;
  const T* x = args.x + row * cols;
  Vec<A> sum[kRows] = {}, square[kRows] = {};
  A mean[kRows];
  for_each_vector<A>(cols, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE { sum[r] += load(x + r * cols + c, n); });
  });
  unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE { mean[r] = reduce_add<A>(sum[r]) / static_cast<A>(cols); });
  for_each_vector<A>(cols, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
      const Vec<A> centred = keep_first(load(x + r * cols + c, n) - mean[r], n);
      square[r] = fma(centred, centred, square[r]);
    });
  });
  unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
    const A variance = reduce_add<A>(square[r]) / static_cast<A>(cols);
    normalise_row<kStream>(args, row + r, mean[r], reciprocal_deviation(variance, args.eps));
  });
}

template <bool kStream, typename T>
void layer_norm_forward_range(const LayerNormForwardArgs<T>& args, int64_t row, int64_t row_end) {
  if (args.cols > kShortRow) {
    for (; row < row_end; ++row) layer_norm_forward_row<kStream>(args, row);
    return;
  }
  for (; row + 4 <= row_end; row += 4) layer_norm_forward_short_rows<4, kStream>(args, row);
  for (; row < row_end; ++row) layer_norm_forward_short_rows<1, kStream>(args, row);
}

template <typename T>
void layer_norm_forward_rows(const LayerNormForwardArgs<T>& args, int64_t row_begin, int64_t row_end) {
  if (args.streams && can_stream(args.y, args.cols)) {
    layer_norm_forward_range<true>(args, row_begin, row_end);
    return finish_streams();
  }
  layer_norm_forward_range<false>(args, row_begin, row_end);
}

// What the sweep for dx takes of a row; the sums are means over the columns.
template <typename A>
struct LayerNormRowMeans {
  A mean, rstd, mean_x, mean_g, mean_gx;
};

template <bool kStream, typename T>
inline void layer_norm_input_gradient(const LayerNormBackwardArgs<T>& args, int64_t row,
                                      const LayerNormRowMeans<Acc<T>>& means) {
  using A = Acc<T>;
  const T *dy = args.dy + row * args.cols, *x = args.x + row * args.cols;
  T* dx = args.dx + row * args.cols;
  const A* weight = args.weight;
  const A mean = means.mean, rstd = means.rstd;
  const A mean_gx = means.mean_gx, offset = means.mean_g - means.mean_x * means.mean_gx;
  for_each_vector<A>(args.cols, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    Vec<A> g = load(dy + c, n);
    if (weight != nullptr) g = rounded(g * load(weight + c, n));
    // xhat rounded as it was when mean_gx was summed: in rows of few columns the difference cancels to the last digits.
    const Vec<A> xhat = (load(x + c, n) - mean) * rstd;
    store_or_stream<kStream>(dx + c, (g - offset - xhat * mean_gx) * rstd, n);
  });
}

// kRows rows at once share each load and store of the dweight and dbias accumulators.
template <typename T, int kRows, bool kInputGrad, bool kParameterGrads, bool kStream>
inline void layer_norm_backward_block(const LayerNormBackwardArgs<T>& args, int64_t row) {
  using A = Acc<T>;
  const int64_t cols = args.cols;
  const A* weight = args.weight;
  const T* dy = args.dy + row * cols;
  const T* x = args.x + row * cols;
  A *dweight_sums = args.dweight, *dbias_sums = args.dbias;
  Vec<A> sum_x[kRows] = {}, sum_g[kRows] = {}, sum_gx[kRows] = {}, mean[kRows], rstd[kRows];
  unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
    mean[r] = broadcast<A>(args.mean[row + r]);
    rstd[r] = broadcast<A>(args.rstd[row + r]);
  });
  for_each_vector<A>(cols, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    const Vec<A> w = weight != nullptr ? load(weight + c, n) : broadcast<A>(1);
    Vec<A> dweight{}, dbias{};
    unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
      const Vec<A> d = load(dy + r * cols + c, n);
      const Vec<A> xhat = keep_first((load(x + r * cols + c, n) - mean[r]) * rstd[r], n);
      const Vec<A> g = rounded(d * w);
      sum_x[r] += xhat;
      sum_g[r] += g;
      sum_gx[r] = fma(g, xhat, sum_gx[r]);
      dweight = fma(d, xhat, dweight);
      dbias += d;
    });
    if constexpr (kParameterGrads) {
      store(dweight_sums + c, load(dweight_sums + c, n) + dweight, n);
      store(dbias_sums + c, load(dbias_sums + c, n) + dbias, n);
    }
  });
  // The saved mean is rounded, so xhat has a mean of its own, by which rows whose values differ by little would lose
  // digits. With xhat - mean_x for xhat they keep them; dweight, summed above without, is mended where it matters.
  LayerNormRowMeans<A> means[kRows];
  unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
    const A count = static_cast<A>(cols);
    const A mean_x = reduce_add<A>(sum_x[r]) / count, mean_g = reduce_add<A>(sum_g[r]) / count;
    means[r] = {args.mean[row + r], args.rstd[row + r], mean_x, mean_g,
                reduce_add<A>(sum_gx[r]) / count - mean_x * mean_g};
  });
  for (int r = 0; r < kRows; ++r) {
    const A mean_x = means[r].mean_x;
    constexpr A kNegligible = sizeof(A) == 4 ? A(0x1p-20) : A(0x1p-49);
    if (kParameterGrads && (mean_x > kNegligible || mean_x < -kNegligible)) {
      for_each_vector<A>(cols, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
        store(dweight_sums + c, load(dweight_sums + c, n) - load(dy + r * cols + c, n) * mean_x, n);
      });
    }
    if constexpr (kInputGrad) layer_norm_input_gradient<kStream>(args, row + r, means[r]);
  }
}

template <typename T, bool kInputGrad, bool kParameterGrads, bool kStream>
void layer_norm_backward_range(const LayerNormBackwardArgs<T>& args, int64_t row, int64_t row_end) {
  for (; row + 4 <= row_end; row += 4) layer_norm_backward_block<T, 4, kInputGrad, kParameterGrads, kStream>(args, row);
  for (; row < row_end; ++row) layer_norm_backward_block<T, 1, kInputGrad, kParameterGrads, kStream>(args, row);
}

template <typename T, bool kStream>
void layer_norm_backward_with_input(const LayerNormBackwardArgs<T>& args, int64_t row_begin, int64_t row_end) {
  if (args.dweight != nullptr) return layer_norm_backward_range<T, true, true, kStream>(args, row_begin, row_end);
  layer_norm_backward_range<T, true, false, kStream>(args, row_begin, row_end);
}

template <typename T>
void layer_norm_backward_rows(const LayerNormBackwardArgs<T>& args, int64_t row_begin, int64_t row_end) {
  if (args.dx == nullptr) return layer_norm_backward_range<T, false, true, false>(args, row_begin, row_end);
  if (args.streams && can_stream(args.dx, args.cols)) {
    layer_norm_backward_with_input<T, true>(args, row_begin, row_end);
    return finish_streams();
  }
  layer_norm_backward_with_input<T, false>(args, row_begin, row_end);
}

template <typename T>
void fill_layer_norm(TypedKernels<T>& table) {
  table.layer_norm = {layer_norm_forward_rows<T>, layer_norm_backward_rows<T>};
}

}  // namespace
}  // namespace tilewright

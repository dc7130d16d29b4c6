// Layer norm's backward over contiguous rows. With xhat = (x - mean) * rstd, g = dy * weight, means over the columns:
//   dx = rstd * (g - mean(g) - xhat * mean(g * xhat)),  dweight += sum over rows of dy * xhat,
//   dbias += sum over rows of dy
//
// Two sweeps over a block of rows, the second from cache:
//   sums      column by column, for all rows of the block, which share each load of weight and each load and store of
//             the accumulators of dweight and dbias
//   dx        row by row: as many streams written at once as there are rows cost 1.3x
// A few long rows, whose dweight and dbias would not stay in cache beside them, are shared out by columns instead:
//   row_means, then column_gradients: every column's sums over all rows are one task's.
//
// The saved mean is rounded, so xhat has a mean of its own, by which rows whose values differ by little would lose
// digits. With xhat - mean(xhat) for xhat they keep them; dweight, summed before that mean is known, is mended where it
// matters.
#pragma once
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

// Rows of a block, whose numbers are the lanes of one vector.
template <typename A>
constexpr int kBlockRows = kLanes<A> < 4 ? kLanes<A> : 4;

// Are blocks of one row better? Where dy and x come from memory, as many runs as rows at once keep the processor from
// fetching ahead: one by one rows of 256 columns take 0.55x the time, of 512 0.75x, of 1024 0.9x. Shorter rows lie
// together anyway, and longer ones, which leave L1 between the sweeps, share what they load: 1.2x at 2048.
inline bool takes_rows_apart(bool from_memory, int64_t cols) { return from_memory && cols > 64 && cols <= 1024; }

// Lane r of each: of row r of a block.
template <typename A>
struct BlockMeans {
  Vec<A> xhat, g;
  Vec<A> g_xhat;  // with xhat - its mean for xhat
};

template <typename T, int kRows, bool kParameterGrads>
inline TILEWRIGHT_INLINE BlockMeans<Acc<T>> sum_rows(const LayerNormBackwardArgs<T>& args, int64_t row) {
  using A = Acc<T>;
  const int64_t cols = args.cols;
  const A *weight = args.weight, *means = args.mean + row, *rstds = args.rstd + row;
  const int64_t stride = args.x_stride;
  const T *dy = args.dy + row * cols, *x = args.x + row * stride;
  A *dweight_sums = args.dweight, *dbias_sums = args.dbias;
  Vec<A> sum_xhat[kRows] = {}, sum_g[kRows] = {}, sum_g_xhat[kRows] = {}, mean[kRows], rstd[kRows];
  unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
    mean[r] = broadcast<A>(means[r]);
    rstd[r] = broadcast<A>(rstds[r]);
  });
  for_each_vector<A>(cols, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    const Vec<A> w = weight != nullptr ? load(weight + c, n) : broadcast<A>(1);
    Vec<A> dweight{}, dbias{};
    unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
      const Vec<A> d = load(dy + r * cols + c, n);
      const Vec<A> xhat = keep_first((load(x + r * stride + c, n) - mean[r]) * rstd[r], n);
      const Vec<A> g = rounded(d * w);
      sum_xhat[r] += xhat;
      sum_g[r] += g;
      sum_g_xhat[r] = fma(g, xhat, sum_g_xhat[r]);
      dweight = fma(d, xhat, dweight);
      dbias += d;
    });
    if constexpr (kParameterGrads) {
      store(dweight_sums + c, load(dweight_sums + c, n) + dweight, n);
      store(dbias_sums + c, load(dbias_sums + c, n) + dbias, n);
    }
  });
  const A scale = A(1) / static_cast<A>(cols);
  const Vec<A> xhat = reduce_add_each<A, kRows>(sum_xhat) * scale, g = reduce_add_each<A, kRows>(sum_g) * scale;
  return {xhat, g, reduce_add_each<A, kRows>(sum_g_xhat) * scale - xhat * g};
}

template <int kRows, typename T>
inline void mend_dweight(const LayerNormBackwardArgs<T>& args, int64_t row, Vec<Acc<T>> xhat) {
  using A = Acc<T>;
  constexpr A kNegligible = sizeof(A) == 4 ? A(0x1p-20) : A(0x1p-49);
  if (__builtin_expect(reduce_max<A>(max(xhat, -xhat)) <= kNegligible, 1)) return;
  A* dweight_sums = args.dweight;
  unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
    const Vec<A> mean = broadcast_lane<A>(xhat, r);
    const T* dy = args.dy + (row + r) * args.cols;
    for_each_vector<A>(args.cols, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      store(dweight_sums + c, load(dweight_sums + c, n) - load(dy + c, n) * mean, n);
    });
  });
}

// dx of a row, place by place: (g - mean(g) - (xhat - mean(xhat)) * mean(g * xhat)) * rstd.
template <typename A>
struct LayerNormInputGradient {
  Vec<A> mean, rstd, offset, g_xhat;

  TILEWRIGHT_INLINE LayerNormInputGradient(const BlockMeans<A>& block, int row_of_block, A row_mean, A row_rstd)
      : mean(broadcast<A>(row_mean)),
        rstd(broadcast<A>(row_rstd)),
        offset(broadcast<A>(block.g[row_of_block] - block.xhat[row_of_block] * block.g_xhat[row_of_block])),
        g_xhat(broadcast_lane<A>(block.g_xhat, row_of_block)) {}

  // xhat rounded as it was when its products were summed: in rows of few columns the difference cancels to the last
  // digits.
  TILEWRIGHT_INLINE Vec<A> of(Vec<A> g, Vec<A> x) const {
    const Vec<A> xhat = (x - mean) * rstd;
    return (g - offset - xhat * g_xhat) * rstd;
  }
};

template <int kRows, bool kStream, typename T>
inline TILEWRIGHT_INLINE void write_dx(const LayerNormBackwardArgs<T>& args, int64_t first_row,
                                       const BlockMeans<Acc<T>>& block) {
  using A = Acc<T>;
  unrolled<kRows>([&](auto r) TILEWRIGHT_INLINE {
    const int64_t row = first_row + r;
    const LayerNormInputGradient<A> gradient(block, r, args.mean[row], args.rstd[row]);
    const T *dy = args.dy + row * args.cols, *x = args.x + row * args.x_stride;
    T* dx = args.dx + row * args.cols;
    const A* weight = args.weight;
    for_each_vector<A>(args.cols, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      Vec<A> g = load(dy + c, n);
      if (weight != nullptr) g = rounded(g * load(weight + c, n));
      store_or_stream<kStream>(dx + c, gradient.of(g, load(x + c, n)), n);
    });
  });
}

// Blocks of kRows rows from `row` on while they last.
template <typename T, int kRows, bool kInputGrad, bool kParameterGrads, bool kStream>
int64_t layer_norm_backward_blocks(const LayerNormBackwardArgs<T>& args, int64_t row, int64_t row_end) {
  for (; row + kRows <= row_end; row += kRows) {
    const auto block = sum_rows<T, kRows, kParameterGrads>(args, row);
    if constexpr (kParameterGrads) mend_dweight<kRows>(args, row, block.xhat);
    if constexpr (kInputGrad) write_dx<kRows, kStream>(args, row, block);
  }
  return row;
}

template <typename T>
void layer_norm_backward_rows(const LayerNormBackwardArgs<T>& args, int64_t row_begin, int64_t row_end) {
  const bool streams = args.streams && args.dx != nullptr && can_stream(args.dx, args.cols);
  choose(args.dx != nullptr, [&](auto input) {
    choose(args.dweight != nullptr, [&](auto parameters) {
      choose(streams, [&](auto stream) {
        if constexpr (input.value || !stream.value) {
          int64_t row = row_begin;
          if (!takes_rows_apart(args.streams, args.cols)) {
            row = layer_norm_backward_blocks<T, kBlockRows<Acc<T>>, input.value, parameters.value, stream.value>(
                args, row, row_end);
          }
          layer_norm_backward_blocks<T, 1, input.value, parameters.value, stream.value>(args, row, row_end);
        }
      });
    });
  });
  if (streams) finish_streams();
}

template <int kRows, typename T>
int64_t row_means_of_blocks(const LayerNormBackwardArgs<T>& args, LayerNormRowMeans<Acc<T>>* means, int64_t row,
                            int64_t row_end) {
  for (; row + kRows <= row_end; row += kRows) {
    const auto block = sum_rows<T, kRows, false>(args, row);
    for (int r = 0; r < kRows; ++r) means[row + r] = {block.xhat[r], block.g[r], block.g_xhat[r]};
  }
  return row;
}

template <typename T>
void layer_norm_row_means(const LayerNormBackwardArgs<T>& args, LayerNormRowMeans<Acc<T>>* means, int64_t row_begin,
                          int64_t row_end) {
  const int64_t row = row_means_of_blocks<kBlockRows<Acc<T>>>(args, means, row_begin, row_end);
  row_means_of_blocks<1>(args, means, row, row_end);
}

template <typename T>
void layer_norm_column_gradients(const LayerNormBackwardArgs<T>& args, const LayerNormRowMeans<Acc<T>>* means,
                                 int64_t rows, int64_t col_begin, int64_t col_end) {
  using A = Acc<T>;
  const int64_t cols = col_end - col_begin;
  A *dweight_sums = args.dweight + col_begin, *dbias_sums = args.dbias + col_begin;
  const A* weight = args.weight != nullptr ? args.weight + col_begin : nullptr;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t first = row * args.cols + col_begin;
    const T *dy = args.dy + first, *x = args.x + row * args.x_stride + col_begin;
    T* dx = args.dx != nullptr ? args.dx + first : nullptr;
    const Vec<A> mean = broadcast<A>(args.mean[row]), rstd = broadcast<A>(args.rstd[row]);
    const Vec<A> mean_xhat = broadcast<A>(means[row].xhat), mean_g = broadcast<A>(means[row].g),
                 mean_g_xhat = broadcast<A>(means[row].g_xhat);
    for_each_vector<A>(cols, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
      const Vec<A> d = load(dy + c, n), xhat = rounded((load(x + c, n) - mean) * rstd) - mean_xhat;
      store(dweight_sums + c, load(dweight_sums + c, n) + d * xhat, n);
      store(dbias_sums + c, load(dbias_sums + c, n) + d, n);
      if (dx == nullptr) return;
      const Vec<A> g = weight != nullptr ? rounded(d * load(weight + c, n)) : d;
      store(dx + c, (g - mean_g - xhat * mean_g_xhat) * rstd, n);
    });
  }
}

}  // namespace
}  // namespace tilewright

// What cpu/layer_norm.cpp hands to kernels/layer_norm.h.
#pragma once
#include "common/types.h"

namespace tilewright {

// From so many columns on weight, bias, x and y of one row fill more than L1, and are better read column by column for
// several rows at once: four take 0.7 to 0.8x the time of one after the other (no less at 2048 columns).
constexpr int64_t kLongRow = 4096;

// Rows are contiguous: element (r, c) of y, dy, dx is at r * cols + c, of x at r * x_stride + c.
template <typename T>
struct LayerNormForwardArgs {
  const T* x;            // [rows, cols]
  const Acc<T>* weight;  // [cols] or null: all ones
  const Acc<T>* bias;    // [cols] or null: all zeros
  T* y;                  // [rows, cols]
  Acc<T>* mean;          // [rows]
  Acc<T>* rstd;          // [rows]
  int64_t cols;
  int64_t x_stride;
  Acc<T> eps;
  bool streams;  // x and y outgrow the caches: y goes past them
};

template <typename T>
struct LayerNormBackwardArgs {
  const T* dy;           // [rows, cols]
  const T* x;            // [rows, cols]
  const Acc<T>* weight;  // [cols] or null: all ones
  const Acc<T>* mean;    // [rows]
  const Acc<T>* rstd;    // [rows]
  T* dx;                 // [rows, cols] or null: not wanted
  Acc<T>* dweight;       // [cols], added to; or null together with dbias: not wanted
  Acc<T>* dbias;         // [cols], added to
  int64_t cols;
  int64_t x_stride;
  bool streams;  // dy, x and dx outgrow the caches: dx goes past them
};

// What the backward's second sweep takes of a row: means over its columns, with xhat = (x - mean) * rstd and
// g = dy * weight.
template <typename A>
struct LayerNormRowMeans {
  A xhat;    // not 0, for the saved mean is rounded
  A g;       // of g
  A g_xhat;  // of g * (xhat - mean of xhat)
};

template <typename T>
struct LayerNormKernels {
  void (*forward)(const LayerNormForwardArgs<T>&, int64_t row_begin, int64_t row_end);
  // Both sweeps of the backward, block of rows by block of rows.
  void (*backward)(const LayerNormBackwardArgs<T>&, int64_t row_begin, int64_t row_end);
  // The first sweep alone: means[row] of rows [row_begin, row_end).
  void (*row_means)(const LayerNormBackwardArgs<T>&, LayerNormRowMeans<Acc<T>>* means, int64_t row_begin,
                    int64_t row_end);
  // The second alone, over columns [col_begin, col_end) of rows [0, rows).
  void (*column_gradients)(const LayerNormBackwardArgs<T>&, const LayerNormRowMeans<Acc<T>>* means, int64_t rows,
                           int64_t col_begin, int64_t col_end);
};

}  // namespace tilewright

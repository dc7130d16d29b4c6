// What cpu/dropout_add_layer_norm.cpp hands to kernels/dropout_add_layer_norm.h.
#pragma once
#include "common/philox.h"
#include "common/types.h"

namespace tilewright {

// Rows are contiguous: element (r, c) is at r * cols + c, which is its logical index too.
template <typename T>
struct DropoutAddLayerNormForwardArgs {
  const T* x;            // [rows, cols]
  const T* residual;     // [rows, cols]
  const Acc<T>* weight;  // [cols] or null: all ones
  const Acc<T>* bias;    // [cols] or null: all zeros
  T* z;                  // [rows, cols], or one block of rows where z_is_scratch
  T* y;                  // [rows, cols]
  Acc<T>* mean;          // [rows]
  Acc<T>* rstd;          // [rows]
  int64_t cols;
  int64_t block_rows;  // rows that stay in cache between the two steps
  bool z_is_scratch;   // z is reused for every block, and not wanted afterwards
  bool streams;        // y goes past the caches
  Acc<T> eps;
  DropoutRule rule;
};

template <typename T>
struct DropoutAddLayerNormBackwardArgs {
  const T* dy;           // [rows, cols]
  const T* dsum;         // [rows, cols] or null: 0
  const T* z;            // [rows, cols]
  const Acc<T>* weight;  // [cols] or null: all ones
  const Acc<T>* mean;    // [rows]
  const Acc<T>* rstd;    // [rows]
  T* dz;                 // [rows, cols] or null: not wanted
  T* dx;                 // [rows, cols] or null: not wanted
  Acc<T>* dweight;       // [cols], added to; or null together with dbias: not wanted
  Acc<T>* dbias;         // [cols], added to
  int64_t cols;
  bool streams;  // all these outgrow the caches: dz and dx go past them
  DropoutRule rule;
};

template <typename T>
struct DropoutAddLayerNormKernels {
  void (*forward)(const DropoutAddLayerNormForwardArgs<T>&, int64_t row_begin, int64_t row_end);
  void (*backward)(const DropoutAddLayerNormBackwardArgs<T>&, int64_t row_begin, int64_t row_end);
};

}  // namespace tilewright

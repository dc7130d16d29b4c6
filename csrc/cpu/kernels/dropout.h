// Dropout over whole tensors, by memory layout.
#pragma once
#include "cpu/kernels/dropout_spans.h"
#include "cpu/kernels/dropout_transposed.h"

namespace tilewright {
namespace {

template <typename T>
void fill_dropout(TypedKernels<T>& table) {
  table.dropout = {dropout_contiguous<T>, dropout_transposed<T>, dropout_strided<T>, dropout_bias_backward<T>,
                   dropout_mask};
}

}  // namespace
}  // namespace tilewright

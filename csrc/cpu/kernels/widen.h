// widened[i] = values[i] in the accumulation type.
#pragma once
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

template <typename T>
void widen(const T* values, Acc<T>* widened, int64_t count) {
  for_each_vector<Acc<T>>(count,
                          [=](int64_t i, int64_t n) TILEWRIGHT_INLINE { store(widened + i, load(values + i, n), n); });
}

template <typename T>
void fill_widen(TypedKernels<T>& table) {
  table.widen = {widen<T>};
}

}  // namespace
}  // namespace tilewright

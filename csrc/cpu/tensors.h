// From Tensor to what kernels take: typed pointers, accumulation-type parameters, one dispatch on dtype, threads.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <memory>

#include "common/types.h"
#include "ops/library.h"

namespace tilewright {

// The pointer as kernels see it, null for an undefined tensor. The caller has checked the dtype.
template <typename T>
const T* const_data(const Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}
template <typename T>
T* mutable_data(const Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

// The one switch on dtype: calls body with a value of the kernel's element type.
template <typename Body>
void dispatch_floating(at::ScalarType dtype, const char* op, const Body& body) {
  switch (dtype) {
    case at::kFloat:
      return body(float{});
    case at::kDouble:
      return body(double{});
    case at::kBFloat16:
      return body(BF16{});
    case at::kHalf:
      return body(F16{});
    default:
      TORCH_CHECK(false, op, ": input must be float32, float64, bfloat16 or float16, got ", dtype);
  }
}

// The dtype sums and statistics of an op on `dtype` are kept in.
inline at::ScalarType accumulation_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// A parameter (weight, bias, ...) contiguous and in the accumulation type; undefined stays undefined. No copy for
// float32 and float64, a few KB otherwise. The test comes first because even a .to() that does nothing costs 0.2 us.
inline Tensor as_accumulator(const Tensor& parameter, at::ScalarType dtype) {
  if (!parameter.defined()) return parameter;
  const auto sum_dtype = accumulation_dtype(dtype);
  return (parameter.scalar_type() == sum_dtype ? parameter : parameter.to(sum_dtype)).contiguous();
}

// A new CPU tensor without the dispatcher's part of at::empty: outputs of small calls would cost more than their
// arithmetic.
inline Tensor empty_cpu(at::IntArrayRef sizes, at::ScalarType dtype,
                        at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return at::detail::empty_cpu(sizes, dtype, /*pin_memory=*/false, format);
}

// Is the result of a pass that reads and writes so many bytes in all better written past the caches? A plain store
// reads every line before it writes it, which costs up to a third of the time beyond the cache; a result that fits is
// wanted there by whoever reads it next. 32 MiB is what the cores of one die commonly share; with a reader behind it,
// layer_norm gained from 30 MB on and lost below 20 MB. (sysconf's figure adds up the caches of all dies.)
inline bool streams_past_cache(size_t bytes) { return bytes > (size_t{32} << 20); }

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
std::unique_ptr<T[]> uninitialised(int64_t size) {
  return std::make_unique_for_overwrite<T[]>(static_cast<size_t>(size));
}

// Runs body(begin, end) over [0, size) on torch's threads. cost is the work of one item in elements read or a like
// unit; below about 32768 of them in all, waking a thread costs more than it brings (1-3 us).
template <typename Body>
void parallel_for_cost(int64_t size, int64_t cost, const Body& body) {
  constexpr int64_t kWorthAThread = 32768;
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, cost));
  if (size <= grain) {
    if (size > 0) body(0, size);
    return;
  }
  at::parallel_for(0, size, grain, body);
}

}  // namespace tilewright

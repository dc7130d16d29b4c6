// What every CPU entry needs beside ops/tensors.h: new tensors without the dispatcher, and threads.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <memory>

#include "ops/tensors.h"

namespace tilewright {

// A new CPU tensor without the dispatcher's part of at::empty: outputs of small calls would cost more than their
// arithmetic.
inline Tensor empty_cpu(at::IntArrayRef sizes, at::ScalarType dtype,
                        at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return at::detail::empty_cpu(sizes, dtype, /*pin_memory=*/false, format);
}

// Bytes for bits of elements, spare ones among them: those are read with the last bits, so they are not left to chance.
inline Tensor empty_bits(int64_t bytes) {
  Tensor bits = empty_cpu({bytes}, at::kByte);
  std::fill_n(mutable_data<uint8_t>(bits) + bytes - kBitsSpare, kBitsSpare, uint8_t{0});
  return bits;
}

// Is the result of a pass that reads and writes so many bytes in all better written past the caches? A plain store
// reads every line before it writes it, which costs up to a third of the time beyond the cache; a result that fits is
// wanted there by whoever reads it next. 32 MiB is what the cores of one die commonly share; with a reader behind it,
// layer_norm gained from 30 MB on and lost below 20 MB. (sysconf's figure adds up the caches of all dies.)
inline bool streams_past_cache(size_t bytes) { return bytes > (size_t{32} << 20); }

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

// Tensors that no caller sees: packed weights, partial sums. Large ones lie on huge pages, which their thread keeps for
// the next one: memory taken anew would cost a fault for every page, as much as what is written to it.
#pragma once
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <vector>

#include "cpu/scratch.h"
#include "cpu/tensors.h"

namespace tilewright {

// Free blocks of one thread.
class ScratchPool {
 public:
  // In all. Weights of 512 x 512 x 3 x 3 in Winograd's 36 points are 38 MB, their gradient's sums as much.
  static constexpr size_t kMostKept = size_t{128} << 20;

  ScratchBlock take(size_t bytes) {
    const auto fits = [=](const ScratchBlock& block) { return block.size >= bytes; };
    const auto found = std::find_if(free_.begin(), free_.end(), fits);
    constexpr size_t kLine = 36;  // between those of slots
    // Much larger ones stay for those that need them.
    if (found == free_.end() || found->size > 4 * bytes) return allocate_scratch(bytes, kLine);
    ScratchBlock block = std::move(*found);
    free_.erase(found);
    return block;
  }
  // Smaller blocks go first: a larger one serves for them, too.
  void give_back(ScratchBlock block) {
    const auto is_smaller = [](const ScratchBlock& a, const ScratchBlock& b) { return a.size < b.size; };
    free_.insert(std::upper_bound(free_.begin(), free_.end(), block, is_smaller), std::move(block));
    while (kept() > kMostKept) free_.erase(free_.begin());
  }
  static ScratchPool& of_thread() {
    static thread_local ScratchPool pool;
    return pool;
  }

 private:
  size_t kept() const {
    size_t bytes = 0;
    for (const ScratchBlock& block : free_) bytes += block.size;
    return bytes;
  }
  std::vector<ScratchBlock> free_;  // the smallest first
};

// Uninitialised. Released by the thread that asked for it.
inline Tensor scratch_tensor(at::IntArrayRef sizes, const at::TensorOptions& options) {
  size_t bytes = options.dtype().itemsize();
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  constexpr size_t kLargest = ScratchPool::kMostKept - (size_t{4} << 20);  // with what rounding adds
#if defined(__SANITIZE_ADDRESS__)
  return at::empty(sizes, options);  // of the exact size, and poisoned when it is released
#endif
  if (bytes < kHugeScratch || bytes > kLargest) return at::empty(sizes, options);
  ScratchBlock block = ScratchPool::of_thread().take(bytes);
  void* const data = block.data();
  // The deleter is copied, so it cannot own the block.
  const auto give_back = [free = block.pages.get_deleter(), pages = block.pages.release(), first = block.first,
                          size = block.size](void*) {
    ScratchPool::of_thread().give_back({ScratchPages(pages, free), first, size});
  };
  return at::from_blob(data, sizes, give_back, options);
}

}  // namespace tilewright

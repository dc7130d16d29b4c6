// Memory that outlives a call: scratch each thread keeps for its kernels, so that no call pays for allocating it. A
// slot belongs to one use (a kernel family and a role); callers that run inside each other take different slots, and
// side by side, a second request for one slot overwrites the first. Contents are not initialised and not kept when a
// block grows. Not for kernel units (they see no std header): the callers in cpu/ fetch it and hand the pointer over.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tilewright {

constexpr int kScratchSlots = 8;

struct ScratchBlock {
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data;
  size_t size = 0;
};

// Blocks of this size and more lie on huge pages where the system has any to give: packed weights and transformed
// images are read at tens of places at a time, MBs apart, and on virtual machines a miss of the TLB walks two tables
// (convolutions of 256 and 512 channels: 0 to 15 %).
constexpr size_t kHugeScratch = size_t{1} << 20;

// At least `bytes` bytes, aligned to a page.
inline ScratchBlock allocate_scratch(size_t bytes) {
  constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;
  const size_t page = bytes < kHugeScratch ? kPage : kHugePage;
  const size_t size = (bytes + page - 1) / page * page;
  ScratchBlock block{std::unique_ptr<void, ScratchBlock::Free>(std::aligned_alloc(page, size)), size};
  if (block.data == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (page == kHugePage) madvise(block.data.get(), size, MADV_HUGEPAGE);  // a wish: systems without them refuse
#endif
  return block;
}

// At least `bytes` bytes, aligned to a page.
inline void* thread_scratch(int slot, size_t bytes) {
  static thread_local ScratchBlock blocks[kScratchSlots];
  ScratchBlock& block = blocks[slot];
  if (block.size < bytes) {
    block = {};
    block = allocate_scratch(bytes);
  }
  return block.data.get();
}

}  // namespace tilewright

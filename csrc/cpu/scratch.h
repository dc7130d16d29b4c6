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
    void operator()(void* pages) const { std::free(pages); }
  };
  std::unique_ptr<char, Free> pages;
  size_t first = 0, size = 0;  // bytes before the data, and of it
  void* data() const { return pages.get() + first; }
};

// Blocks of this size and more lie on huge pages where the system has any to give: packed weights and transformed
// images are read at tens of places at a time, MBs apart, and on virtual machines a miss of the TLB walks two tables
// (convolutions of 256 and 512 channels: 0 to 15 %).
constexpr size_t kHugeScratch = size_t{1} << 20;

// At least `bytes` bytes, aligned to 64: from 64-byte line `line` of a page on. What is read together wants lines of
// its own: operands that all begin with a page share sets of L1 (1x1 of 1024 channels in parts of bfloat16: 6 %
// slower).
inline ScratchBlock allocate_scratch(size_t bytes, size_t line) {
  constexpr size_t kLine = 64;
#if defined(__SANITIZE_ADDRESS__)  // which looks behind the last line that was asked for
  constexpr size_t kPage = kLine, kHugePage = kLine;
#else
  constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;
#endif
  const size_t page = bytes < kHugeScratch ? kPage : kHugePage, first = line * kLine;
  const size_t size = (first + bytes + page - 1) / page * page;
  std::unique_ptr<char, ScratchBlock::Free> pages(static_cast<char*>(std::aligned_alloc(page, size)));
  if (pages == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (bytes >= kHugeScratch) madvise(pages.get(), size, MADV_HUGEPAGE);  // a wish: systems without them refuse
#endif
  return {std::move(pages), first, size - first};
}

// At least `bytes` bytes, aligned to 64.
inline void* thread_scratch(int slot, size_t bytes) {
  static thread_local ScratchBlock blocks[kScratchSlots];
  ScratchBlock& block = blocks[slot];
  if (block.size < bytes) {
    block = {};
    constexpr size_t kLinesApart = 8;
    block = allocate_scratch(bytes, slot * kLinesApart);
  }
  return block.data();
}

}  // namespace tilewright

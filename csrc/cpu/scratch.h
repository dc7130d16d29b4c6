// Memory that outlives a call: scratch each thread keeps for its kernels, so that no call pays for allocating it. A
// slot belongs to one use (a kernel family and a role); callers that run inside each other take different slots, and
// side by side, a second request for one slot overwrites the first. Contents are not initialised and not kept when a
// block grows. Not for kernel units (they see no std header): the callers in cpu/ fetch it and hand the pointer over.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tilewright {

constexpr int kScratchSlots = 8;

// Pages of malloc, or `mapped` bytes of the system's.
struct FreePages {
  size_t mapped = 0;
  void operator()(char* pages) const {
#if defined(__linux__)
    if (mapped > 0) return static_cast<void>(munmap(pages, mapped));
#endif
    std::free(pages);
  }
};
using ScratchPages = std::unique_ptr<char, FreePages>;

struct ScratchBlock {
  ScratchPages pages;
  size_t first = 0, size = 0;  // bytes before the data, and of it
  void* data() const { return pages.get() + first; }
};

// Blocks of this size and more lie on huge pages where the system has any to give: packed weights and transformed
// images are read at tens of places at a time, MBs apart, and on virtual machines a miss of the TLB walks two tables
// (convolutions of 256 and 512 channels: 0 to 15 %).
constexpr size_t kHugeScratch = size_t{1} << 20;
constexpr size_t kHugePage = size_t{2} << 20;

#if defined(MADV_HUGEPAGE) && !defined(__SANITIZE_ADDRESS__)
// `size` bytes, whole huge pages, straight from the system: memory that malloc hands out again has small pages already,
// and keeps them whatever is asked for. Null where there is none.
inline ScratchPages map_huge_pages(size_t size) {
  const size_t mapped = size + kHugePage;  // what lies before the first one and behind the last is given back
  void* const all = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return {};
  char* const begin = static_cast<char*>(all);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + size, kHugePage - before);
  madvise(begin + before, size, MADV_HUGEPAGE);  // a wish: systems without them refuse
  return ScratchPages(begin + before, FreePages{size});
}
#endif

// At least `bytes` bytes, aligned to 64: from 64-byte line `line` of a page on. What is read together wants lines of
// its own: operands that all begin with a page share sets of L1 (1x1 of 1024 channels in parts of bfloat16: 6 %
// slower).
inline ScratchBlock allocate_scratch(size_t bytes, size_t line) {
  constexpr size_t kLine = 64;
#if defined(__SANITIZE_ADDRESS__)  // which looks behind the last line that was asked for
  constexpr size_t kPage = kLine;
#else
  constexpr size_t kPage = 4096;
#endif
  const size_t first = line * kLine;
  ScratchPages pages;
  size_t size = 0;
#if defined(MADV_HUGEPAGE) && !defined(__SANITIZE_ADDRESS__)
  if (bytes >= kHugeScratch) {
    size = (first + bytes + kHugePage - 1) / kHugePage * kHugePage;
    pages = map_huge_pages(size);
  }
#endif
  if (pages == nullptr) {
    size = (first + bytes + kPage - 1) / kPage * kPage;
    pages.reset(static_cast<char*>(std::aligned_alloc(kPage, size)));
  }
  if (pages == nullptr) throw std::bad_alloc();
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

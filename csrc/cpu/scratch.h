// Working memory of kernels: one growing block per thread and slot, kept for the thread's life.
//
// A slot is a small number that names a use (packed right operand, left tile, ...): blocks of different slots live side
// by side, a second request for one slot overwrites the first. Contents are not initialised and not kept when a block
// grows. Not for kernel units (they see no std header): the callers in cpu/ fetch it and hand the pointer over.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <new>

namespace tilewright {

constexpr int kScratchSlots = 8;

// At least `bytes` bytes, aligned to 64.
inline void* thread_scratch(int slot, size_t bytes) {
  struct Block {
    void* data = nullptr;
    size_t size = 0;
    ~Block() { std::free(data); }
  };
  static thread_local Block blocks[kScratchSlots];
  Block& block = blocks[slot];
  if (block.size < bytes) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    std::free(block.data);
    block.data = nullptr;
    block.size = 0;
    block.data = std::aligned_alloc(64, rounded);
    if (block.data == nullptr) throw std::bad_alloc();
    block.size = rounded;
  }
  return block.data;
}

}  // namespace tilewright

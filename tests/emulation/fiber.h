// Stacks and the switch between them.
#pragma once
#include <cstddef>

namespace simt {

// The stack of one thread of a block, used again by each block. Below it lies a page that no access survives.
class Stack {
 public:
  Stack();
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // Makes the next switch to it call `entry`, which must never return.
  void prepare(void (*entry)());
  // Leaves the scheduler for this stack, and comes back by leave(). One at a time.
  void enter();
  static void leave(bool for_ever);
  // The first thing that `entry` does.
  static void arrived();

 private:
  unsigned char *mapping_, *bottom_;
  size_t spread_;
  void* pointer_ = nullptr;
};

}  // namespace simt

// One block of a grid: its threads, what each waits for, and who may go on.
#pragma once
#include <memory>
#include <vector>

#include "fiber.h"
#include "simt.h"

namespace simt {

enum class State { ready, at_collective, at_barrier, exited };

struct Thread {
  uint3 index;
  unsigned linear, warp, lane;
  State state;
  // Of the collective or barrier it waits at, or passed last.
  Collective call;
  unsigned mask, source;
  uint64_t value;
  std::source_location where;
  Stack stack;
};

// splitmix64: the order of blocks, warps and lanes.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
};

class Block {
 public:
  // Runs `body` in every thread. Throws Violation.
  void run(unsigned threads, const std::function<void()>& body, Random* order);

  void sync_block(std::source_location where);
  uint64_t rendezvous(Collective call, unsigned mask, unsigned source, uint64_t value, std::source_location where);
  [[noreturn]] void fail(const std::string& what, std::source_location where);
  // What a thread does from its first to its last moment.
  void live();
  Thread& current() const { return *current_; }
  unsigned barriers() const { return barriers_; }
  unsigned warp_barriers(unsigned warp) const { return warp_barriers_[warp]; }

 private:
  void start(unsigned threads);
  bool run_warp(unsigned warp, unsigned turn);
  void complete(unsigned warp, unsigned mask);
  void release_barrier();
  [[noreturn]] void report_deadlock() const;
  unsigned lanes_of(unsigned warp) const;

  std::vector<std::unique_ptr<Thread>> pool_;  // grows to the largest block
  std::vector<unsigned> warp_barriers_;
  Thread* current_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::string failure_;
  unsigned threads_ = 0, barriers_ = 0;
  unsigned exited_ = 0, at_barrier_ = 0;  // threads in these states
};

std::string described(const uint3& index);
std::string described(std::source_location where);

}  // namespace simt

#include "block.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <numeric>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {

namespace {

Block* active;  // the block whose threads run

const char* name_of(Collective call) {
  static constexpr const char* kNames[] = {"__shfl_sync",   "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync",
                                           "__ballot_sync", "__any_sync",     "__all_sync",       "__syncwarp"};
  return kNames[static_cast<int>(call)];
}

bool is_same(std::source_location a, std::source_location b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

bool is_shuffle(Collective call) { return call <= Collective::shfl_xor; }

std::string hex(unsigned mask) {
  char text[11];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

void thread_main() {
  Stack::arrived();
  active->live();
}

}  // namespace

std::string described(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string described(std::source_location where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

void Block::run(unsigned threads, const std::function<void()>& body, Random* order) {
  active = this;
  body_ = &body;
  start(threads);
  const unsigned warps = (threads + kWarp - 1) / kWarp;
  std::vector<unsigned> turns(warps);
  std::iota(turns.begin(), turns.end(), 0u);
  while (exited_ < threads_) {
    if (order != nullptr) {
      for (unsigned i = warps; i > 1; --i) std::swap(turns[i - 1], turns[order->next() % i]);
    }
    bool moved = false;
    for (const unsigned warp : turns) {
      moved |= run_warp(warp, order != nullptr ? static_cast<unsigned>(order->next()) : 0);
    }
    if (at_barrier_ + exited_ == threads_) {
      if (at_barrier_ > 0) release_barrier();
    } else if (!moved) {
      report_deadlock();
    }
  }
}

void Block::start(unsigned threads) {
  while (pool_.size() < threads) pool_.push_back(std::make_unique<Thread>());
  threads_ = threads;
  barriers_ = exited_ = at_barrier_ = 0;
  warp_barriers_.assign((threads + kWarp - 1) / kWarp, 0);
  failure_.clear();
  for (unsigned i = 0; i < threads; ++i) {
    Thread& thread = *pool_[i];
    thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    thread.lane = i % kWarp;
    thread.linear = i;
    thread.warp = i / kWarp;
    thread.state = State::ready;
    thread.stack.prepare(&thread_main);
  }
}

// Lets the lanes of a warp run until all of them wait for other warps, for each other in vain, or are done. `turn` says
// which lane is first, and whether they go up or down.
bool Block::run_warp(unsigned warp, unsigned turn) {
  const unsigned lanes = lanes_of(warp), first = turn / 2 % lanes;
  bool moved = false, again = true;
  while (again) {
    again = false;
    for (unsigned i = 0; i < lanes; ++i) {
      const unsigned lane = (turn % 2 == 0 ? first + i : first + lanes - i) % lanes;
      Thread& thread = *pool_[warp * kWarp + lane];
      if (thread.state != State::ready) continue;
      current_ = &thread;
      threadIdx = thread.index;
      thread.stack.enter();
      if (!failure_.empty()) throw Violation(failure_);
      moved = again = true;
    }
  }
  return moved;
}

void Block::live() {
  (*body_)();
  current_->state = State::exited;
  ++exited_;
  Stack::leave(true);
}

void Block::sync_block(std::source_location where) {
  current_->state = State::at_barrier;
  current_->where = where;
  ++at_barrier_;
  Stack::leave(false);
}

void Block::release_barrier() {
  const Thread *first = nullptr, *gone = nullptr;
  for (unsigned i = 0; i < threads_; ++i) {
    Thread& thread = *pool_[i];
    if (thread.state == State::exited) {
      gone = &thread;
      continue;
    }
    if (first == nullptr) first = &thread;
    if (!is_same(thread.where, first->where)) {
      throw Violation("thread " + described(first->index) + " waits in __syncthreads at " + described(first->where) +
                      ", thread " + described(thread.index) + " in another one at " + described(thread.where));
    }
    thread.state = State::ready;
  }
  if (gone != nullptr) {
    throw Violation("thread " + described(gone->index) + " has left the kernel, while thread " +
                    described(first->index) + " waits for it in __syncthreads at " + described(first->where));
  }
  at_barrier_ = 0;
  ++barriers_;
}

uint64_t Block::rendezvous(Collective call, unsigned mask, unsigned source, uint64_t value,
                           std::source_location where) {
  Thread& self = *current_;
  const unsigned lanes = lanes_of(self.warp), all = lanes == kWarp ? 0xffffffffu : (1u << lanes) - 1;
  const std::string call_name = name_of(call);
  if ((mask >> self.lane & 1u) == 0) fail(call_name + " with the mask " + hex(mask) + ", which lacks the caller", where);
  if ((mask & ~all) != 0) fail(call_name + " with the mask " + hex(mask) + " names lanes that the warp lacks", where);
  if (is_shuffle(call) && (source >= kWarp || (mask >> source & 1u) == 0)) {
    fail(call_name + " reads lane " + std::to_string(source) + ", which is not in the mask " + hex(mask), where);
  }
  self.state = State::at_collective;
  self.call = call;
  self.mask = mask;
  self.source = source;
  self.value = value;
  self.where = where;
  unsigned present = 1u << self.lane;
  for (unsigned lane = 0; lane < lanes; ++lane) {
    const Thread& other = *pool_[self.warp * kWarp + lane];
    if (other.state != State::at_collective || lane == self.lane) continue;
    if ((mask >> lane & 1u) == 0 && (other.mask >> self.lane & 1u) == 0) continue;  // not each other's business
    if (other.call != call || other.mask != mask) {
      fail(call_name + " with the mask " + hex(mask) + " meets thread " + described(other.index) + " in " +
               name_of(other.call) + " with the mask " + hex(other.mask) + " at " + described(other.where),
           where);
    }
    present |= 1u << lane;
  }
  if (present == mask) {
    complete(self.warp, mask);
  } else {
    Stack::leave(false);
  }
  return self.value;
}

void Block::complete(unsigned warp, unsigned mask) {
  uint64_t values[kWarp], bits = 0;
  for (unsigned lane = 0; lane < lanes_of(warp); ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    values[lane] = pool_[warp * kWarp + lane]->value;
    bits |= static_cast<uint64_t>(values[lane] != 0) << lane;
  }
  for (unsigned lane = 0; lane < lanes_of(warp); ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    Thread& thread = *pool_[warp * kWarp + lane];
    thread.value = is_shuffle(thread.call) ? values[thread.source] : bits;
    thread.state = State::ready;
  }
  if (current_->call == Collective::syncwarp && std::popcount(mask) == static_cast<int>(lanes_of(warp))) {
    ++warp_barriers_[warp];
  }
}

void Block::fail(const std::string& what, std::source_location where) {
  failure_ = "thread " + described(current_->index) + " at " + described(where) + ": " + what;
  Stack::leave(true);
  __builtin_unreachable();
}

// Nobody can go on: some lanes wait for others, which wait elsewhere or are gone.
void Block::report_deadlock() const {
  for (unsigned i = 0; i < threads_; ++i) {
    const Thread& thread = *pool_[i];
    if (thread.state != State::at_collective) continue;
    for (unsigned lane = 0; lane < lanes_of(thread.warp); ++lane) {
      const Thread& other = *pool_[thread.warp * kWarp + lane];
      if ((thread.mask >> lane & 1u) == 0 || other.state == State::at_collective) continue;
      const std::string elsewhere = other.state == State::exited
                                        ? "has left the kernel"
                                        : "waits in __syncthreads at " + described(other.where);
      throw Violation("thread " + described(thread.index) + " waits in " + name_of(thread.call) + " at " +
                      described(thread.where) + " with the mask " + hex(thread.mask) + " for lane " +
                      std::to_string(lane) + ", which " + elsewhere);
    }
  }
  throw Violation("lanes of a warp wait for each other in a circle of collectives");
}

unsigned Block::lanes_of(unsigned warp) const { return std::min(kWarp, threads_ - warp * kWarp); }

}  // namespace simt

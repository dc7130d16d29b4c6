#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the emulation switches stacks in x86-64 assembly; write simt_switch for this machine"
#endif

// void simt_switch(void** save, void* to): keeps what the System V ABI lets a callee not touch. A new stack starts as if
// it had been left here, with simt_start as the place to return to; its frames end there for debuggers and sanitizers.
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch

.globl simt_start
.hidden simt_start
.type simt_start, @function
simt_start:
  .cfi_startproc
  .cfi_undefined rip
  callq *%rbx
  ud2
  .cfi_endproc
.size simt_start, .-simt_start
)");

extern "C" __attribute__((visibility("hidden"))) void simt_switch(void** save, void* to);
extern "C" __attribute__((visibility("hidden"))) void simt_start();

namespace simt {
namespace {

constexpr size_t kPage = 4096;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;  // instrumented frames are larger
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

void* scheduler_pointer;
Stack* entered;

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_bottom;
size_t scheduler_bytes;
#endif

}  // namespace

Stack::Stack() {
  // Tops at equal distances in pages would all meet in one set of the cache.
  static unsigned made = 0;
  spread_ = made++ % 32 * 128;
  void* mapping = mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<unsigned char*>(mapping);
  bottom_ = mapping_ + kPage;
  mprotect(mapping_, kPage, PROT_NONE);
}

Stack::~Stack() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom_, kStackBytes);
#endif
  munmap(mapping_, kPage + kStackBytes);
}

void Stack::prepare(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom_, kStackBytes);  // frames of a thread that never came to its end
#endif
  // r15 r14 r13 r12 rbx rbp, the return address; the stack is then a multiple of 16 at simt_start's call.
  auto* top = reinterpret_cast<uint64_t*>(bottom_ + kStackBytes - spread_) - 9;
  for (int i = 0; i < 9; ++i) top[i] = 0;
  top[4] = reinterpret_cast<uint64_t>(entry);
  top[6] = reinterpret_cast<uint64_t>(&simt_start);
  pointer_ = top;
}

void Stack::enter() {
  entered = this;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, bottom_, kStackBytes);
  simt_switch(&scheduler_pointer, pointer_);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
  simt_switch(&scheduler_pointer, pointer_);
#endif
}

void Stack::leave([[maybe_unused]] bool for_ever) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake_stack, scheduler_bottom, scheduler_bytes);
  simt_switch(&entered->pointer_, scheduler_pointer);
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler_bottom, &scheduler_bytes);
#else
  simt_switch(&entered->pointer_, scheduler_pointer);
#endif
}

void Stack::arrived() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_bytes);
#endif
}

}  // namespace simt

#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "common/base/check.h"

#if defined(EM_FIBERS_TELL_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

namespace expertmesh::cuda_on_host {
namespace {

constexpr std::size_t kStackBytes = 256 << 10;
std::size_t guard_bytes() {
  return static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

// ---- before and after a switch: the address sanitizer follows stacks
void leaving([[maybe_unused]] void** fake_stack, [[maybe_unused]] void const* to,
             [[maybe_unused]] std::size_t to_bytes) {
#if defined(EM_FIBERS_TELL_ASAN)
  __sanitizer_start_switch_fiber(fake_stack, to, to_bytes);
#endif
}
void arrived([[maybe_unused]] void* fake_stack, [[maybe_unused]] void const** from,
             [[maybe_unused]] std::size_t* from_bytes) {
#if defined(EM_FIBERS_TELL_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack, from, from_bytes);
#endif
}

// Not longjmp(): glibc's checks and the sanitizers' know of one stack only. The compiler wants the jump in a function
// of its own.
[[noreturn, gnu::noinline]] void jump(void** to) {
  __builtin_longjmp(to, 1);
}

}  // namespace

Fiber::Fiber(void (*body)(void*), void* argument) : body_(body), argument_(argument) {
  void* memory = mmap(nullptr, guard_bytes() + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  EM_CHECK(memory != MAP_FAILED, "no memory for a fiber's stack");
  EM_CHECK(mprotect(memory, guard_bytes(), PROT_NONE) == 0, "guard page of a fiber's stack");
  stack_ = static_cast<std::byte*>(memory) + guard_bytes();
  EM_CHECK(getcontext(&start_) == 0, "getcontext");
  start_.uc_stack.ss_sp = stack_;
  start_.uc_stack.ss_size = kStackBytes;
  start_.uc_link = nullptr;
  auto const self = reinterpret_cast<std::uintptr_t>(this);
  makecontext(&start_, reinterpret_cast<void (*)()>(&Fiber::enter), 2, static_cast<unsigned>(self >> 32),
              static_cast<unsigned>(self));
}

Fiber::~Fiber() {
  munmap(stack_ - guard_bytes(), guard_bytes() + kStackBytes);
}

void Fiber::enter(unsigned high, unsigned low) {
  auto* const fiber = reinterpret_cast<Fiber*>(static_cast<std::uintptr_t>(high) << 32 | low);
  arrived(fiber->fake_stack_, &fiber->caller_stack_, &fiber->caller_stack_bytes_);
  for (;;) {
    fiber->body_(fiber->argument_);
    fiber->suspend();
  }
}

void Fiber::resume() {
  void* fake_stack = nullptr;
  leaving(&fake_stack, stack_, kStackBytes);
  if (__builtin_setjmp(caller_) == 0) {
    if (started_) jump(here_);
    started_ = true;
    setcontext(&start_);
  }
  arrived(fake_stack, nullptr, nullptr);
}

void Fiber::suspend() {
  leaving(&fake_stack_, caller_stack_, caller_stack_bytes_);
  if (__builtin_setjmp(here_) == 0) jump(caller_);
  arrived(fake_stack_, &caller_stack_, &caller_stack_bytes_);
}

}  // namespace expertmesh::cuda_on_host

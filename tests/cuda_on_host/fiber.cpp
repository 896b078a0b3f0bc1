#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "common/base/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace expertmesh::cuda_on_host {
namespace {

constexpr std::size_t kStackBytes = 256 << 10;
std::size_t guard_bytes() {
  return static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

// ---- before and after a switch: the sanitizers follow stacks
void leaving(void** fake_stack, void const* to, std::size_t to_bytes, void* fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, to, to_bytes);
#elif defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber, 0);
#endif
  static_cast<void>(fake_stack), static_cast<void>(to), static_cast<void>(to_bytes), static_cast<void>(fiber);
}
void arrived(void* fake_stack, void const** from, std::size_t* from_bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, from, from_bytes);
#endif
  static_cast<void>(fake_stack), static_cast<void>(from), static_cast<void>(from_bytes);
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
#if defined(__SANITIZE_THREAD__)
  sanitizer_fiber_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(sanitizer_fiber_);
#endif
  munmap(stack_ - guard_bytes(), guard_bytes() + kStackBytes);
}

void Fiber::switched_to_fiber() {
  arrived(fake_stack_, &caller_stack_, &caller_stack_bytes_);
}

void Fiber::enter(unsigned high, unsigned low) {
  auto* const fiber = reinterpret_cast<Fiber*>(static_cast<std::uintptr_t>(high) << 32 | low);
  fiber->switched_to_fiber();
  for (;;) {
    fiber->body_(fiber->argument_);
    fiber->suspend();
  }
}

void Fiber::resume() {
  void* fake_stack = nullptr;
#if defined(__SANITIZE_THREAD__)
  sanitizer_caller_ = __tsan_get_current_fiber();
#endif
  leaving(&fake_stack, stack_, kStackBytes, sanitizer_fiber_);
  if (_setjmp(caller_) == 0) {
    if (started_) _longjmp(here_, 1);
    started_ = true;
    setcontext(&start_);
  }
  arrived(fake_stack, nullptr, nullptr);
}

void Fiber::suspend() {
  leaving(&fake_stack_, caller_stack_, caller_stack_bytes_, sanitizer_caller_);
  if (_setjmp(here_) == 0) _longjmp(caller_, 1);
  switched_to_fiber();
}

}  // namespace expertmesh::cuda_on_host

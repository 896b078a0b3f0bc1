// A stack of its own, on which a function runs until it suspends itself. Switching costs no system call.
#pragma once
#include <ucontext.h>

#include <cstddef>

namespace expertmesh::cuda_on_host {

class Fiber {
 public:
  // body(argument) is called by the first resume() and by every one after it has returned.
  Fiber(void (*body)(void*), void* argument);
  ~Fiber();
  Fiber(Fiber const&) = delete;
  Fiber& operator=(Fiber const&) = delete;

  void resume();   // returns at the next suspend(), or when body returns
  void suspend();  // on the fiber's own stack

 private:
  static void enter(unsigned high, unsigned low);

  void (*body_)(void*);
  void* argument_;
  std::byte* stack_;
  bool started_ = false;
  ucontext_t start_{};
  void* here_[5];                       // in the fiber, where it was suspended
  void* caller_[5];                     // in resume()
  void const* caller_stack_ = nullptr;  // the next: what the address sanitizer is told
  std::size_t caller_stack_bytes_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace expertmesh::cuda_on_host

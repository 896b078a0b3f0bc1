// Task<>: a lazily started coroutine of one micro-batch. `co_await experts.exchange(...)` suspends it, so that another
// micro-batch can run; its frame comes from the FrameArena that the coroutine takes as its first parameter (for a
// member function: the first after *this).
#pragma once
#include <coroutine>
#include <exception>
#include <utility>

#include "common/base/frame_arena.h"

namespace expertmesh {

class [[nodiscard]] Task {
 public:
  struct promise_type {
    std::coroutine_handle<> continuation = std::noop_coroutine();
    std::exception_ptr failure;

    // Frames: [arena pointer | frame], so that operator delete finds where it came from.
    template <class... Args>
    static void* operator new(std::size_t bytes, FrameArena& arena, Args&...) {
      return make_frame(bytes, arena);
    }
    template <class Self, class... Args>
    static void* operator new(std::size_t bytes, Self&, FrameArena& arena, Args&...) {
      return make_frame(bytes, arena);
    }
    static void operator delete(void* frame, std::size_t bytes) {
      auto* block = static_cast<std::byte*>(frame) - kHeaderBytes;
      (*reinterpret_cast<FrameArena**>(block))->release(block, bytes + kHeaderBytes);
    }

    Task get_return_object() { return Task(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_always initial_suspend() noexcept { return {}; }
    auto final_suspend() noexcept {
      struct Resume {
        bool await_ready() noexcept { return false; }
        std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> done) noexcept {
          return done.promise().continuation;
        }
        void await_resume() noexcept {}
      };
      return Resume{};
    }
    void return_void() {}
    void unhandled_exception() { failure = std::current_exception(); }

   private:
    static constexpr std::size_t kHeaderBytes = 64;
    static void* make_frame(std::size_t bytes, FrameArena& arena) {
      auto* block = static_cast<std::byte*>(arena.allocate(bytes + kHeaderBytes));
      *reinterpret_cast<FrameArena**>(block) = &arena;
      return block + kHeaderBytes;
    }
  };

  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (handle_) handle_.destroy();
  }

  // Runs until the first suspension or the end. Only for the outermost task; inner ones are awaited.
  void start() { handle_.resume(); }
  [[nodiscard]] bool done() const { return handle_.done(); }
  [[nodiscard]] bool failed() const { return handle_.promise().failure != nullptr; }
  // After done(): throws what the coroutine threw.
  void rethrow() const {
    if (handle_.promise().failure) std::rethrow_exception(handle_.promise().failure);
  }

  auto operator co_await() noexcept {
    struct Await {
      std::coroutine_handle<promise_type> handle;
      bool await_ready() noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<> caller) noexcept {
        handle.promise().continuation = caller;
        return handle;
      }
      void await_resume() {
        if (handle.promise().failure) std::rethrow_exception(handle.promise().failure);
      }
    };
    return Await{handle_};
  }

 private:
  explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  std::coroutine_handle<promise_type> handle_;
};

}  // namespace expertmesh

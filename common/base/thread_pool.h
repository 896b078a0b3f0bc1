// One persistent pool of compute threads. The calling thread is part of it (thread 0), so a pool of 1 starts none.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "common/base/thread_plan.h"

namespace expertmesh {

// A borrowed callable: no allocation on the step path. Must not outlive what it refers to.
template <class Signature>
class FunctionRef;
template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
      FunctionRef(F&& f)  // NOLINT(google-explicit-constructor,bugprone-forwarding-reference-overload)
      : object_(const_cast<void*>(static_cast<void const*>(&f))), call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(args...);
        }) {}
  R operator()(Args... args) const { return call_(object_, args...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

class ThreadPool {
 public:
  // Where the system places the threads, and compute threads of other processes share the cores, it keeps two of a pool
  // on one core for milliseconds, and the others wait.
  explicit ThreadPool(ThreadPlan plan);
  explicit ThreadPool(std::size_t num_threads);  // it does
  ~ThreadPool();
  ThreadPool(ThreadPool const&) = delete;
  ThreadPool& operator=(ThreadPool const&) = delete;

  [[nodiscard]] std::size_t num_threads() const { return num_threads_; }
  [[nodiscard]] ThreadPlan const& plan() const { return plan_; }

  // The calling thread, which will be the one to call parallel_for, goes to its cores if it has any.
  void place_caller() const;

  // Splits [0, count) into num_threads() contiguous parts of nearly equal size, runs body(begin, end, thread_index) on
  // each and returns when all have ended. Which thread runs what never changes a result. One caller at a time.
  void parallel_for(std::size_t count,
                    FunctionRef<void(std::size_t begin, std::size_t end, std::size_t thread_index)> body);

 private:
  void run_worker(std::size_t thread_index);
  void run_part(std::size_t thread_index);

  std::size_t const num_threads_;
  ThreadPlan const plan_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<std::uint64_t> generation_ = 0;  // odd steps of work; waiting threads spin on it, then sleep
  std::atomic<std::size_t> unfinished_ = 0;
  std::atomic<std::size_t> sleeping_ = 0;
  std::atomic<bool> stop_ = false;
  std::size_t count_ = 0;
  FunctionRef<void(std::size_t, std::size_t, std::size_t)> const* body_ = nullptr;
};

}  // namespace expertmesh

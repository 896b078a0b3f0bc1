#include "common/base/thread_pool.h"

#include <sched.h>

#include <utility>

#include "common/base/check.h"
#include "common/base/cores.h"

namespace expertmesh {
namespace {

// A waiting thread spins this often before it sleeps (some tens of microseconds: the gap between two ops of a step),
// giving its core away every few rounds since there may be more processes than cores.
constexpr int kSpinRounds = 4000;

void relax(int round) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
  if (round % 64 == 63) sched_yield();
}

}  // namespace

ThreadPool::ThreadPool(std::size_t num_threads) : ThreadPool(ThreadPlan::anywhere(num_threads, "not pinned")) {}

ThreadPool::ThreadPool(ThreadPlan plan) : num_threads_(plan.num_threads()), plan_(std::move(plan)) {
  EM_CHECK(num_threads_ >= 1, "num_threads " << num_threads_);
  for (std::size_t i = 1; i < num_threads_; ++i) threads_.emplace_back([this, i] { run_worker(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& t : threads_) t.join();
}

void ThreadPool::parallel_for(std::size_t count, FunctionRef<void(std::size_t, std::size_t, std::size_t)> body) {
  if (count == 0) return;
  if (num_threads_ == 1 || count == 1) {
    body(0, count, 0);
    return;
  }
  count_ = count;
  body_ = &body;
  unfinished_.store(num_threads_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst) != 0) {
    { std::lock_guard lock(mutex_); }  // a thread between its last look and its wait must not miss the notification
    wake_.notify_all();
  }
  run_part(0);
  for (int round = 0; unfinished_.load(std::memory_order_acquire) != 0; ++round) relax(round);
}

void ThreadPool::run_part(std::size_t thread_index) {
  std::size_t const begin = count_ * thread_index / num_threads_;
  std::size_t const end = count_ * (thread_index + 1) / num_threads_;
  if (begin < end) (*body_)(begin, end, thread_index);
}

void ThreadPool::place_caller() const {
  if (!plan_.cores_of(0).empty()) restrict_to_cores(plan_.cores_of(0));
}

void ThreadPool::run_worker(std::size_t thread_index) {
  if (!plan_.cores_of(thread_index).empty()) restrict_to_cores(plan_.cores_of(thread_index));
  std::uint64_t seen = 0;
  for (;;) {
    for (int round = 0; round < kSpinRounds && generation_.load(std::memory_order_acquire) == seen; ++round)
      relax(round);
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      sleeping_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_seq_cst) != seen; });
      sleeping_.fetch_sub(1, std::memory_order_relaxed);
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_) return;
    run_part(thread_index);
    unfinished_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace expertmesh

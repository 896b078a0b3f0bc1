// What the control plane tells the loop of the data plane: run, sleep until woken, or stop.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>

namespace expertmesh {

class ServingGate {
 public:
  enum class Mode : int { loading, serving, idle, stopped };

  [[nodiscard]] Mode mode() const { return mode_.load(std::memory_order_relaxed); }

  // Stopped is for good.
  void set(Mode mode) {
    {
      std::lock_guard lock(mutex_);
      if (mode_ != Mode::stopped) mode_ = mode;
    }
    changed_.notify_all();
  }

  void sleep_while_idle() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return mode() != Mode::idle; });
  }

 private:
  std::atomic<Mode> mode_ = Mode::loading;
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace expertmesh

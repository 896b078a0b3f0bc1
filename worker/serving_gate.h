// What the control plane tells the loop of the data plane, for each coordinator: run, sleep until woken, or stop.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>

namespace expertmesh {

// By which the loop is woken.
class Doorbell {
 public:
  // Runs `change` and wakes whoever sleeps, to look again.
  template <class Change>
  void ring(Change const& change) {
    {
      std::lock_guard const lock(mutex_);
      change();
    }
    rung_.notify_all();
  }
  // Until `ready`, which looks at what changes between rings alone.
  template <class Ready>
  void sleep_until(Ready const& ready) {
    std::unique_lock lock(mutex_);
    rung_.wait(lock, ready);
  }

 private:
  std::mutex mutex_;
  std::condition_variable rung_;
};

class ServingGate {
 public:
  enum class Mode : int { loading, serving, idle, stopped };

  // The bell must outlive it.
  explicit ServingGate(Doorbell& bell) : bell_(bell) {}

  [[nodiscard]] Mode mode() const { return mode_.load(std::memory_order_relaxed); }

  // Stopped is for good.
  void set(Mode mode) {
    bell_.ring([&] {
      if (mode_ != Mode::stopped) mode_ = mode;
    });
  }

 private:
  Doorbell& bell_;
  std::atomic<Mode> mode_ = Mode::loading;
};

}  // namespace expertmesh

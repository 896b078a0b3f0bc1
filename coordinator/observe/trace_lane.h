// The events of one thread on their way to the file: a bounded queue with one writer and one reader, that neither waits
// for the other. What has no room is lost, and counted.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "coordinator/observe/trace_event.h"

namespace expertmesh {

class TraceLane {  // NOLINT(clang-analyzer-optin.performance.Padding): what two threads write lies apart
 public:
  explicit TraceLane(std::size_t capacity) : events_(capacity) {}

  // ---- the thread whose lane it is
  void put(TraceEvent const& event) {
    if (closed_.load(std::memory_order_relaxed)) return;
    std::uint64_t const put = num_put_.load(std::memory_order_relaxed);
    if (put - num_taken_.load(std::memory_order_acquire) == events_.size()) {
      num_lost_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    events_[put % events_.size()] = event;
    num_put_.store(put + 1, std::memory_order_release);
  }

  // ---- the thread that writes the file
  // Hands everything that is there to take(event), in the order in which it was put.
  template <class Take>
  void drain(Take const& take) {
    std::uint64_t taken = num_taken_.load(std::memory_order_relaxed);
    for (std::uint64_t const put = num_put_.load(std::memory_order_acquire); taken != put; ++taken) {
      take(events_[taken % events_.size()]);
      num_taken_.store(taken + 1, std::memory_order_release);
    }
  }
  [[nodiscard]] std::uint64_t num_lost() const { return num_lost_.load(std::memory_order_relaxed); }
  void close() { closed_.store(true, std::memory_order_relaxed); }  // nothing is taken in any more

 private:
  std::vector<TraceEvent> events_;
  alignas(64) std::atomic<std::uint64_t> num_put_ = 0;
  std::atomic<std::uint64_t> num_lost_ = 0;
  alignas(64) std::atomic<std::uint64_t> num_taken_ = 0;
  std::atomic<bool> closed_ = false;
};

}  // namespace expertmesh

// The latest deaths of workers, for people: most are replaced within a fraction of a second, before anybody looks.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "coordinator/cluster/worker_status.h"

namespace expertmesh {

struct Death {
  WorkerId worker;
  Incarnation incarnation;
  std::int64_t pid = 0;  // 0: it died before it had said so
  std::string host;
  std::string reason;
  std::chrono::steady_clock::time_point when;
};

class DeathLog {  // thread-safe
 public:
  static constexpr std::size_t kMaxDeaths = 64;

  void add(WorkerStatus const& dead) {
    std::lock_guard lock(mutex_);
    if (deaths_.size() == kMaxDeaths) deaths_.pop_front();
    deaths_.push_back({.worker = dead.id,
                       .incarnation = dead.incarnation,
                       .pid = dead.pid,
                       .host = dead.host,
                       .reason = dead.death_reason,
                       .when = std::chrono::steady_clock::now()});
  }
  [[nodiscard]] std::vector<Death> latest() const {  // the last one last
    std::lock_guard lock(mutex_);
    return {deaths_.begin(), deaths_.end()};
  }

 private:
  mutable std::mutex mutex_;
  std::deque<Death> deaths_;
};

}  // namespace expertmesh

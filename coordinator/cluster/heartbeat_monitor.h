// Judges from heartbeats which workers are silent for too long. Pure: time comes in as an argument.
#pragma once
#include <chrono>
#include <cstddef>
#include <optional>
#include <vector>

namespace expertmesh {

class HeartbeatMonitor {
 public:
  using Clock = std::chrono::steady_clock;

  explicit HeartbeatMonitor(std::size_t num_workers) : workers_(num_workers) {}

  // Starts (or starts anew) to watch a worker, as if a heartbeat came now.
  void watch(std::size_t worker_index, Clock::duration timeout, Clock::time_point now);
  void unwatch(std::size_t worker_index);
  // A heartbeat came: returns the time since the one before.
  Clock::duration beat(std::size_t worker_index, Clock::time_point now);
  // Workers that are silent for longer than their timeout; they are no longer watched. due: when this check was meant
  // to be. What it is late counts against nobody: heartbeats may be waiting unread.
  std::vector<std::size_t> check(Clock::time_point now, Clock::time_point due);
  [[nodiscard]] std::optional<Clock::duration> age(std::size_t worker_index, Clock::time_point now) const;

 private:
  struct Watched {
    Clock::duration timeout{0};
    Clock::time_point last_seen;  // moved forward by the monitor's own delays
    Clock::time_point last_beat;  // as it was
  };
  std::vector<std::optional<Watched>> workers_;
};

}  // namespace expertmesh

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

  // check() is meant to be called every check_interval.
  HeartbeatMonitor(std::size_t num_workers, Clock::duration check_interval, Clock::time_point now)
      : check_interval_(check_interval), last_check_(now), workers_(num_workers) {}

  // Starts (or starts anew) to watch a worker, as if a heartbeat came now.
  void watch(std::size_t worker_index, Clock::duration timeout, Clock::time_point now);
  void unwatch(std::size_t worker_index);
  // A heartbeat came: returns the time since the one before.
  Clock::duration beat(std::size_t worker_index, Clock::time_point now);
  // Workers that are silent for longer than their timeout; they are no longer watched. Time in which check() itself was
  // called late counts for nobody: their heartbeats may be waiting unread.
  std::vector<std::size_t> check(Clock::time_point now);
  [[nodiscard]] std::optional<Clock::duration> age(std::size_t worker_index, Clock::time_point now) const;

 private:
  struct Watched {
    Clock::duration timeout{0};
    Clock::time_point last_seen;  // moved forward by the monitor's own delays
    Clock::time_point last_beat;  // as it was
  };
  Clock::duration check_interval_;
  Clock::time_point last_check_;
  std::vector<std::optional<Watched>> workers_;
};

}  // namespace expertmesh

#include "coordinator/cluster/heartbeat_monitor.h"

#include <algorithm>
#include <utility>

namespace expertmesh {

void HeartbeatMonitor::watch(std::size_t worker_index, Clock::duration timeout, Clock::time_point now) {
  workers_[worker_index] = Watched{.timeout = timeout, .last_seen = now, .last_beat = now};
}

void HeartbeatMonitor::unwatch(std::size_t worker_index) {
  workers_[worker_index].reset();
}

HeartbeatMonitor::Clock::duration HeartbeatMonitor::beat(std::size_t worker_index, Clock::time_point now) {
  auto& worker = workers_[worker_index];
  if (!worker) return Clock::duration{0};
  worker->last_seen = now;
  return now - std::exchange(worker->last_beat, now);
}

std::vector<std::size_t> HeartbeatMonitor::check(Clock::time_point now, Clock::time_point due) {
  Clock::duration const own_delay = std::max(Clock::duration{0}, now - due);
  std::vector<std::size_t> silent;
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    if (!workers_[i]) continue;
    workers_[i]->last_seen = std::min(now, workers_[i]->last_seen + own_delay);
    if (now - workers_[i]->last_seen <= workers_[i]->timeout) continue;
    silent.push_back(i);
    unwatch(i);
  }
  return silent;
}

std::optional<HeartbeatMonitor::Clock::duration> HeartbeatMonitor::age(std::size_t worker_index,
                                                                       Clock::time_point now) const {
  if (!workers_[worker_index]) return std::nullopt;
  return now - workers_[worker_index]->last_beat;
}

}  // namespace expertmesh

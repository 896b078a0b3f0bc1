// A process of this host that we may have to end, told apart from a later one that got its number.
#pragma once
#include <cstdint>
#include <optional>

namespace expertmesh {

class WorkerProcess {
 public:
  explicit WorkerProcess(std::int64_t pid);  // the process must be running

  [[nodiscard]] bool running() const;  // false for a zombie
  void kill() const;                   // SIGKILL if it still runs

 private:
  std::int64_t pid_;
  std::optional<std::uint64_t> start_time_;  // clock ticks since boot; none: it had ended already
};

}  // namespace expertmesh

#include "coordinator/cluster/worker_process.h"

#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill() is POSIX
#include <sys/types.h>

#include <fstream>
#include <sstream>
#include <string>

namespace expertmesh {
namespace {

// Field 22 of /proc/<pid>/stat; none if there is no such process or only its zombie.
std::optional<std::uint64_t> start_time_of(std::int64_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  std::size_t const name_end = line.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(line.substr(name_end + 1));
  std::string state;
  std::string skipped;
  fields >> state;  // field 3
  if (state == "Z" || state == "X") return std::nullopt;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  std::uint64_t start_time = 0;
  return fields >> start_time ? std::optional(start_time) : std::nullopt;
}

}  // namespace

WorkerProcess::WorkerProcess(std::int64_t pid) : pid_(pid), start_time_(start_time_of(pid)) {}

bool WorkerProcess::running() const {
  return start_time_ && start_time_of(pid_) == start_time_;
}

void WorkerProcess::kill() const {
  if (running()) ::kill(static_cast<pid_t>(pid_), SIGKILL);
}

}  // namespace expertmesh

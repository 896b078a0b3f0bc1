#include "coordinator/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>

namespace expertmesh {
namespace {

// First whitespace-separated number of a file; `fallback` if there is none ("max" in a cgroup file, or no such file).
double first_number(char const* path, double fallback) {
  std::ifstream in(path);
  double value = 0;
  return in >> value ? value : fallback;
}

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

}  // namespace

std::size_t usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::size_t cores = 1;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = static_cast<std::size_t>(CPU_COUNT(&set));
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");  // "<quota> <period>" in microseconds, or "max <period>"
  double quota = 0;
  double period = 0;
  if (quota_file >> quota >> period && period > 0)
    cores = std::min(cores, static_cast<std::size_t>(std::max(1.0, quota / period)));
  return std::max<std::size_t>(cores, 1);
}

std::size_t available_memory_bytes() {
  double available = kUnlimited;
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  std::string unit;
  double kib = 0;
  while (meminfo >> key >> kib) {
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") available = kib * 1024;
  }
  double const limit = first_number("/sys/fs/cgroup/memory.max", kUnlimited);
  if (limit != kUnlimited) available = std::min(available, limit - first_number("/sys/fs/cgroup/memory.current", 0));
  return available == kUnlimited ? std::numeric_limits<std::size_t>::max()
                                 : static_cast<std::size_t>(std::max(available, 0.0));
}

std::string host_name() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? std::string(name.data()) : std::string("unknown");
}

}  // namespace expertmesh

#include "common/base/available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "common/base/cgroup.h"

namespace expertmesh {
namespace {

// First whitespace-separated number of a file; `fallback` if there is none ("max" in a cgroup file, or no such file).
double first_number(char const* path, double fallback) {
  std::ifstream in(path);
  double value = 0;
  return in >> value ? value : fallback;
}

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// The names of a memory controller's files.
struct MemoryFiles {
  char const* limit;
  char const* used;
};
constexpr MemoryFiles files_of(CgroupVersion version) {
  return version == CgroupVersion::v2 ? MemoryFiles{"memory.max", "memory.current"}
                                      : MemoryFiles{"memory.limit_in_bytes", "memory.usage_in_bytes"};
}

// What may still be allocated: file pages nobody used lately give way, as those of a checkpoint read once do.
double free_in(Cgroup const& group) {
  MemoryFiles const files = files_of(group.version);
  double const limit = first_number((group.folder / files.limit).c_str(), kUnlimited);
  if (limit == kUnlimited) return kUnlimited;
  double reclaimable = 0;
  std::ifstream stat(group.folder / "memory.stat");
  std::string key;
  for (double value = 0; stat >> key >> value;)
    if (key == "inactive_file" || key == "total_inactive_file") reclaimable = value;
  return limit - first_number((group.folder / files.used).c_str(), 0) + reclaimable;
}

}  // namespace

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
  for (Cgroup const& group : cgroups_of_process("memory")) available = std::min(available, free_in(group));
  return available == kUnlimited ? std::numeric_limits<std::size_t>::max()
                                 : static_cast<std::size_t>(std::max(available, 0.0));
}

}  // namespace expertmesh

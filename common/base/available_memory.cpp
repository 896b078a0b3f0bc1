#include "common/base/available_memory.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

namespace expertmesh {
namespace {

// First whitespace-separated number of a file; `fallback` if there is none ("max" in a cgroup file, or no such file).
double first_number(char const* path, double fallback) {
  std::ifstream in(path);
  double value = 0;
  return in >> value ? value : fallback;
}

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// A memory controller's folder, with the names its version has for limit and use.
struct MemoryCgroup {
  std::filesystem::path folder;
  char const* limit;
  char const* used;
};

// This process's own and all above it: each of them limits it. Version 2 first, then 1; none outside of cgroups.
std::vector<MemoryCgroup> memory_cgroups() {
  std::vector<MemoryCgroup> groups;
  auto const add = [&](std::filesystem::path const& root, std::string const& own, char const* limit, char const* used) {
    for (std::filesystem::path path = own;; path = path.parent_path()) {
      groups.push_back({root / path.relative_path(), limit, used});
      if (path == path.parent_path()) break;
    }
  };
  std::ifstream list("/proc/self/cgroup");  // "0::/path", or "4:memory:/path"
  for (std::string line; std::getline(list, line);) {
    std::size_t const second = line.find(':', line.find(':') + 1);
    if (second == std::string::npos) continue;
    std::string const controllers = line.substr(line.find(':') + 1, second - line.find(':') - 1);
    std::string const path = line.substr(second + 1);
    if (controllers.empty()) add("/sys/fs/cgroup", path, "memory.max", "memory.current");
    if (controllers == "memory") add("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes");
  }
  return groups;
}

// What may still be allocated: file pages nobody used lately give way, as those of a checkpoint read once do.
double free_in(MemoryCgroup const& group) {
  double const limit = first_number((group.folder / group.limit).c_str(), kUnlimited);
  if (limit == kUnlimited) return kUnlimited;
  double reclaimable = 0;
  std::ifstream stat(group.folder / "memory.stat");
  std::string key;
  for (double value = 0; stat >> key >> value;)
    if (key == "inactive_file" || key == "total_inactive_file") reclaimable = value;
  return limit - first_number((group.folder / group.used).c_str(), 0) + reclaimable;
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
  for (auto const& group : memory_cgroups()) available = std::min(available, free_in(group));
  return available == kUnlimited ? std::numeric_limits<std::size_t>::max()
                                 : static_cast<std::size_t>(std::max(available, 0.0));
}

}  // namespace expertmesh

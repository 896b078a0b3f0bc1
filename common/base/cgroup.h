// The control groups that limit this process.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace expertmesh {

enum class CgroupVersion : std::uint8_t { v1, v2 };

struct Cgroup {
  CgroupVersion version;
  std::filesystem::path folder;  // with the controller's files; need not be there
};

// Its own group of this controller ("memory", "cpu") and all above it, each of which limits it; none outside of
// cgroups. root: of the file system.
std::vector<Cgroup> cgroups_of_process(std::string const& controller, std::filesystem::path const& root = "/");

}  // namespace expertmesh

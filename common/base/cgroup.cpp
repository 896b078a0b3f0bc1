#include "common/base/cgroup.h"

#include <fstream>

namespace expertmesh {

std::vector<Cgroup> cgroups_of_process(std::string const& controller, std::filesystem::path const& root) {
  std::vector<Cgroup> groups;
  auto const add = [&](CgroupVersion version, std::filesystem::path const& mount, std::string const& own) {
    for (std::filesystem::path path = own;; path = path.parent_path()) {
      groups.push_back({version, mount / path.relative_path()});
      if (path == path.parent_path()) break;
    }
  };
  std::ifstream list(root / "proc/self/cgroup");  // "0::/path", or "4:cpu,cpuacct:/path"
  for (std::string line; std::getline(list, line);) {
    std::size_t const first = line.find(':');
    std::size_t const second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string const controllers = line.substr(first + 1, second - first - 1);
    std::string const path = line.substr(second + 1);
    if (controllers.empty()) add(CgroupVersion::v2, root / "sys/fs/cgroup", path);
    if (("," + controllers + ",").find("," + controller + ",") != std::string::npos)
      add(CgroupVersion::v1, root / "sys/fs/cgroup" / controller, path);
  }
  return groups;
}

}  // namespace expertmesh

#include "common/base/paths.h"

namespace expertmesh {

std::filesystem::path executable_dir() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path();
}

std::filesystem::path data_dir() {
  return executable_dir().parent_path() / "share" / "expertmesh";
}

}  // namespace expertmesh

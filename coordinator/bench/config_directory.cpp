#include "coordinator/bench/config_directory.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "common/base/error.h"

namespace expertmesh {

ConfigDirectory::ConfigDirectory(std::filesystem::path const& model) : given_(model) {
  if (!std::filesystem::is_regular_file(model)) return;
  std::string name = (std::filesystem::temp_directory_path() / "expertmesh-bench-XXXXXX").string();
  if (!mkdtemp(name.data())) throw FileError("mkdtemp", errno, std::strerror(errno), name);
  made_ = name;
  std::filesystem::create_symlink(std::filesystem::absolute(model), *made_ / "config.json");
}

ConfigDirectory::~ConfigDirectory() {
  std::error_code ignored;
  if (made_) std::filesystem::remove_all(*made_, ignored);
}

}  // namespace expertmesh

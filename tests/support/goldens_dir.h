// Where the fixtures lie: EM_GOLDENS_DIR of the environment, where programs run elsewhere than they were built, else
// the source tree's (EM_GOLDENS_DIR of the build).
#pragma once
#include <cstdlib>
#include <filesystem>

namespace expertmesh::test {

inline std::filesystem::path goldens_dir() {
  char const* const elsewhere = std::getenv("EM_GOLDENS_DIR");
  return elsewhere != nullptr && *elsewhere != 0 ? elsewhere : EM_GOLDENS_DIR;
}

}  // namespace expertmesh::test

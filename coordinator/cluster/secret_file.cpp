#include "coordinator/cluster/secret_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "common/base/error.h"
#include "common/protocol/secret_proof.h"

namespace expertmesh {
namespace {

[[noreturn]] void fail(char const* call, std::filesystem::path const& path) {
  throw FileError(call, errno, std::strerror(errno), path.string());
}

}  // namespace

SecretFile::SecretFile(std::filesystem::path const& given) {
  if (!given.empty()) {
    path_ = std::filesystem::absolute(given);
    token_ = read_secret(path_);
    return;
  }
  token_ = random_nonce();
  // Beside Open MPI's files of this run: what a killed coordinator leaves there is removed at the next start.
  char const* const run = std::getenv("OMPI_MCA_orte_tmpdir_base");
  auto const parent = run != nullptr ? std::filesystem::path(run) : std::filesystem::temp_directory_path();
  std::string pattern = (parent / "expertmesh-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) fail("mkdtemp", pattern);
  directory_ = pattern;
  path_ = directory_ / "secret";
  int const file = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) fail("open", path_);
  bool const written = write(file, token_.data(), token_.size()) == static_cast<ssize_t>(token_.size());
  if (close(file) != 0 || !written) fail("write", path_);
}

SecretFile::~SecretFile() {
  if (directory_.empty()) return;
  std::error_code ignored;  // somebody else's cleaning may have been faster
  std::filesystem::remove_all(directory_, ignored);
}

}  // namespace expertmesh

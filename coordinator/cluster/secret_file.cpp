#include "coordinator/cluster/secret_file.h"

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "common/base/error.h"

namespace expertmesh {
namespace {

[[noreturn]] void fail(char const* call, std::filesystem::path const& path) {
  throw FileError(call, errno, std::strerror(errno), path.string());
}

std::string random_token() {
  std::array<unsigned char, 32> bytes{};
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) fail("getrandom", "");
  std::string token;
  for (unsigned char const byte : bytes) {
    token.push_back("0123456789abcdef"[byte >> 4]);
    token.push_back("0123456789abcdef"[byte & 15]);
  }
  return token;
}

}  // namespace

SecretFile::SecretFile() : token_(random_token()) {
  std::string pattern = (std::filesystem::temp_directory_path() / "expertmesh-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) fail("mkdtemp", pattern);
  directory_ = pattern;
  path_ = directory_ / "secret";
  int const file = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) fail("open", path_);
  bool const written = write(file, token_.data(), token_.size()) == static_cast<ssize_t>(token_.size());
  if (close(file) != 0 || !written) fail("write", path_);
}

SecretFile::~SecretFile() {
  std::error_code ignored;  // somebody else's cleaning may have been faster
  std::filesystem::remove_all(directory_, ignored);
}

bool SecretFile::matches(std::string_view token) const {
  unsigned difference = token.size() == token_.size() ? 0 : 1;
  for (std::size_t i = 0; i < token_.size(); ++i)
    difference |= static_cast<unsigned char>(token_[i]) ^ static_cast<unsigned char>(i < token.size() ? token[i] : 0);
  return difference == 0;
}

}  // namespace expertmesh

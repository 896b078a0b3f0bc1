// The shared secret of a coordinator and its workers: a file that only this user can read.
#pragma once
#include <filesystem>
#include <string>
#include <string_view>

namespace expertmesh {

class SecretFile {
 public:
  // given: a file with the secret, that nobody else may read. Empty: a fresh random token, in a 0600 file in a fresh
  // 0700 directory. Throws FileError.
  explicit SecretFile(std::filesystem::path const& given = {});
  ~SecretFile();  // removes a fresh one
  SecretFile(SecretFile const&) = delete;
  SecretFile& operator=(SecretFile const&) = delete;

  [[nodiscard]] std::filesystem::path const& path() const { return path_; }
  [[nodiscard]] std::string const& secret() const { return token_; }

 private:
  std::filesystem::path directory_;
  std::filesystem::path path_;
  std::string token_;
};

}  // namespace expertmesh

// A model directory for a configuration that may be a file of its own: one with a link to it, removed at the end, and
// by SIGINT, SIGTERM or SIGHUP. One at a time.
#pragma once
#include <filesystem>
#include <optional>

namespace expertmesh {

class ConfigDirectory {
 public:
  // A directory is taken as it is; anything else is linked to as config.json. Throws FileError.
  explicit ConfigDirectory(std::filesystem::path const& model);
  ~ConfigDirectory();
  ConfigDirectory(ConfigDirectory const&) = delete;
  ConfigDirectory& operator=(ConfigDirectory const&) = delete;

  [[nodiscard]] std::filesystem::path const& path() const { return made_ ? *made_ : given_; }

 private:
  std::filesystem::path given_;
  std::optional<std::filesystem::path> made_;
};

}  // namespace expertmesh

// Who may use the API.
#pragma once
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace expertmesh {

class ApiKeys {
 public:
  explicit ApiKeys(std::vector<std::string> keys) : keys_(std::move(keys)) {}
  // Whether an Authorization header's value carries one of the keys, or none is asked for. The time it takes depends on
  // the header's length alone, not on how much of a key it has right.
  [[nodiscard]] bool allow(std::string_view authorization) const;

 private:
  std::vector<std::string> keys_;
};

// One key a line; blank lines and those that begin with # are skipped. Throws FileError naming the file if it cannot be
// read or has no key.
std::vector<std::string> read_api_keys(std::filesystem::path const& file);

}  // namespace expertmesh

#include "coordinator/http/api_keys.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include "common/base/error.h"

namespace expertmesh {
namespace {

constexpr std::string_view kScheme = "bearer ";

bool has_scheme(std::string_view text) {
  if (text.size() < kScheme.size()) return false;
  for (std::size_t i = 0; i < kScheme.size(); ++i)
    if ((text[i] | 0x20) != (kScheme[i] | 0x20)) return false;  // in any case
  return true;
}

bool same(std::string_view offered, std::string_view key) {
  std::size_t difference = offered.size() ^ key.size();
  for (std::size_t i = 0; i < offered.size(); ++i)
    difference |= static_cast<unsigned char>(offered[i] ^ key[i % key.size()]);
  return difference == 0;
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r";
  std::size_t const begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

}  // namespace

bool ApiKeys::allow(std::string_view authorization) const {
  if (keys_.empty()) return true;
  if (!has_scheme(authorization)) return false;
  std::string_view const offered = trimmed(authorization.substr(kScheme.size()));
  bool found = false;
  for (auto const& key : keys_) found |= same(offered, key);  // all of them, whichever it is
  return found;
}

std::vector<std::string> read_api_keys(std::filesystem::path const& file) {
  std::ifstream in(file);
  if (!in) throw FileError("open", errno, std::strerror(errno), file.string());
  std::vector<std::string> keys;
  for (std::string line; std::getline(in, line);)
    if (auto const key = trimmed(line); !key.empty() && key.front() != '#') keys.emplace_back(key);
  if (keys.empty()) throw FileError("read", 0, "holds no API key", file.string());
  return keys;
}

}  // namespace expertmesh

#include "common/checkpoint/strict_json.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "common/base/error.h"
#include "common/base/json_watch.h"

namespace expertmesh {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxDepth =
    16;  // deeper than any model file; keeps what recurses over a value off the stack's end
constexpr std::size_t kMaxMessage = 400;  // bytes of foreign text in a message

// Refuses deep nesting and keys given twice.
class StrictWatch final : public JsonWatch {
 public:
  explicit StrictWatch(std::string const& what) : what_(what) {}

 private:
  void on_depth(std::size_t depth) override {
    if (depth > kMaxDepth) throw ModelError(what_ + ": it nests more than " + std::to_string(kMaxDepth) + " deep");
  }
  void on_object() override { keys_.emplace_back(); }
  void on_object_end() override { keys_.pop_back(); }
  void on_key(std::string const& key) override {
    if (!keys_.back().insert(key).second) throw ModelError(what_ + ": " + in_quotes(key) + " is listed twice");
  }

  std::string const& what_;
  std::vector<std::set<std::string>> keys_;  // of the objects around the current place
};

}  // namespace

Json parse_strict_json(std::string_view text, std::string const& what) {
  StrictWatch(what).look_through(text);
  Json json;
  try {
    json = Json::parse(text);
  } catch (Json::exception const&) {
    throw ModelError(what + ": not valid JSON");
  }
  if (!json.is_object()) throw ModelError(what + ": not a JSON object");
  return json;
}

Json read_strict_json(std::filesystem::path const& file) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) throw ModelError(file.string() + ": no such file");
  if (auto const bytes = std::filesystem::file_size(file, error); error || bytes > kMaxJsonBytes)
    throw ModelError(file.string() + ": oversized (at most " + std::to_string(kMaxJsonBytes) + " bytes)");
  std::ifstream in(file, std::ios::binary);
  std::string const text{std::istreambuf_iterator<char>(in), {}};
  if (!in) throw ModelError(file.string() + ": cannot be read");
  return parse_strict_json(text, file.string());
}

std::string one_line(std::string_view text) {
  std::size_t length = text.size();
  if (length > kMaxMessage) {
    length = kMaxMessage;
    while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xc0) == 0x80) --length;  // a character's start
  }
  std::string line(text.substr(0, length));
  std::ranges::replace_if(
      line, [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  return length < text.size() ? line + "…" : line;
}

std::string in_quotes(std::string_view text) {
  return "'" + one_line(text) + "'";
}

}  // namespace expertmesh

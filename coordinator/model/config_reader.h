// One JSON object of a model directory, read field by field: every field is used, known to be without effect, or
// refused.
#pragma once
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/strong_id.h"

namespace expertmesh {

constexpr std::size_t kMostCount = 0x7fffffff;  // more than any count of a model; ids and products of two fit 64 bits

// Every getter marks its field as used and throws ModelError naming file and field if the value is not of its kind. A
// null counts as absent.
class ConfigReader {
 public:
  explicit ConfigReader(std::filesystem::path const& file);  // ModelError if there is no file or it is no JSON object
  ~ConfigReader();
  ConfigReader(ConfigReader&&) noexcept;

  [[nodiscard]] bool has(std::string_view field) const;
  [[nodiscard]] bool is_null(std::string_view field) const;  // there, and says nothing
  [[nodiscard]] bool is_list(std::string_view field) const;
  [[nodiscard]] bool is_text(std::string_view field) const;
  [[nodiscard]] std::vector<std::string> fields() const;                     // all names, in ascending order
  std::size_t count(std::string_view field, std::size_t most = kMostCount);  // a whole number from 1 to `most`
  std::size_t count_or(std::string_view field, std::size_t fallback);
  std::optional<std::size_t> optional_count(std::string_view field);
  std::size_t index(std::string_view field);  // a whole number from 0
  double number_or(std::string_view field, double fallback);
  bool flag_or(std::string_view field, bool fallback);  // null: false
  std::string text(std::string_view field);
  std::string text_or(std::string_view field, std::string_view fallback);
  std::vector<std::size_t> indices(std::string_view field);    // list of whole numbers; empty if absent
  std::vector<double> numbers(std::string_view field);         // list of numbers; empty if absent
  std::vector<TokenId> token_ids(std::string_view field);      // one id or a list of them; empty if absent
  std::vector<std::string> texts(std::string_view field);      // list of strings; empty if absent
  std::optional<ConfigReader> object(std::string_view field);  // a nested object

  // Fields of training and bookkeeping that change nothing here.
  void without_effect(std::vector<std::string_view> const& fields);
  // A feature this program does not have: absent, null, false, 0 or empty is fine, anything else is refused.
  void must_be_off(std::string_view field);
  [[noreturn]] void refuse(std::string_view field, std::string const& why) const;
  // Refuses the first field that nothing above asked about, unless its value says "off".
  void finish() const;

 private:
  struct Impl;
  explicit ConfigReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh

// Sets of Unicode code points, and the classes that patterns name.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace expertmesh {

constexpr char32_t kLastCodePoint = 0x10FFFF;

class CodePointSet {
 public:
  struct Range {
    char32_t first, last;
    bool operator==(Range const&) const = default;
  };
  CodePointSet() = default;
  explicit CodePointSet(std::vector<Range> ranges);  // in any order, may overlap

  [[nodiscard]] std::vector<Range> const& ranges() const { return ranges_; }  // ascending, apart from each other
  [[nodiscard]] bool contains(char32_t c) const;
  [[nodiscard]] CodePointSet complement() const;
  [[nodiscard]] CodePointSet united(CodePointSet const& other) const;
  [[nodiscard]] CodePointSet intersected(CodePointSet const& other) const;
  // With every code point that differs from a member by case only.
  [[nodiscard]] CodePointSet case_folded() const;
  bool operator==(CodePointSet const&) const = default;

 private:
  std::vector<Range> ranges_;
};

// As Oniguruma's \s, \d, \w and \h have them.
CodePointSet const& space_set();
CodePointSet const& digit_set();
CodePointSet const& word_set();
CodePointSet const& hex_digit_set();
// General categories ("L", "Lu", "Letter"), scripts ("Han") and what else \p{…} may name; case, '_', '-' and ' ' do not
// count. None if there is no such property.
std::optional<CodePointSet> property_set(std::string_view name);

}  // namespace expertmesh

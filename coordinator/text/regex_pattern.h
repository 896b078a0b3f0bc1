// A split pattern of a tokenizer.json (Oniguruma syntax) over PCRE2.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace expertmesh {

class RegexPattern {
 public:
  // Throws ModelError naming the pattern if it does not compile or uses what PCRE2 reads otherwise (class
  // intersection).
  explicit RegexPattern(std::string const& pattern);
  // Bounds of all matches in valid UTF-8, from left to right, none empty. Thread-safe. OutsideError
  // if the pattern backtracks beyond PCRE2's limits on this text.
  [[nodiscard]] std::vector<std::pair<std::size_t, std::size_t>> matches(std::string_view text) const;

 private:
  struct Code;
  std::shared_ptr<Code const> code_;
};

}  // namespace expertmesh

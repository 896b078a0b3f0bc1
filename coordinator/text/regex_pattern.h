// A pattern of a tokenizer.json (Oniguruma, Ruby syntax) and all its matches in a text, in time linear in the text.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace expertmesh {

struct RegexProgram;

class RegexPattern {
 public:
  struct Match {
    std::size_t begin, end;  // bytes
  };
  // Throws ModelError with the pattern in it for what is malformed or not supported.
  explicit RegexPattern(std::string const& pattern);
  // All matches in valid UTF-8, from left to right: of those at one place the one that backtracking finds first. An
  // empty match is one too, but right behind another match. Thread-safe.
  void matches(std::string_view text, std::vector<Match>& out) const;

 private:
  std::shared_ptr<RegexProgram const> program_;
};

}  // namespace expertmesh

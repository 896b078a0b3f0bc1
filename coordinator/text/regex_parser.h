// Oniguruma's patterns (Ruby syntax), as tokenizer.json has them, as a tree.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/text/code_point_set.h"

namespace expertmesh {

struct RegexNode {
  enum class Kind : std::uint8_t { set, sequence, alternatives, repeat, look, assertion };
  enum class Assertion : std::uint8_t {
    line_start,
    line_end,
    text_start,
    text_end,
    last_line_end,
    boundary,
    no_boundary
  };
  enum class Mode : std::uint8_t { greedy, lazy, possessive };
  Kind kind = Kind::sequence;
  CodePointSet set;                 // one character of it
  std::vector<RegexNode> children;  // of the others; one for repeat and look
  std::size_t min = 0;              // of repeat
  std::optional<std::size_t> max;   // none: any number
  Mode mode = Mode::greedy;
  bool behind = false;  // of look
  bool negative = false;
  Assertion assertion = Assertion::line_start;
};

// Throws ModelError with the pattern in it for what is malformed or not supported (back references, atomic groups, …).
RegexNode parse_regex(std::string const& pattern);

}  // namespace expertmesh

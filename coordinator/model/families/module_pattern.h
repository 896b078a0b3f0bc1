// A pattern of a quantization config that names modules.
#pragma once
#include <memory>
#include <string>

#include "coordinator/text/regex_pattern.h"

namespace expertmesh {

enum class PatternKind : std::uint8_t {
  everything,
  components,  // whole components of the dotted name, * for anything: modules_to_not_convert of transformers
  part,        // any part of the name: modules_to_not_convert of AutoAWQ
  name,        // the name
  regex,       // matches from the name's first letter on: Python's re.match
};

class ModulePattern {
 public:
  // Throws ModelError with the pattern in it for a regex that is malformed or not supported.
  ModulePattern(PatternKind kind, std::string text);
  [[nodiscard]] bool matches(std::string const& module) const;
  [[nodiscard]] std::string const& text() const { return text_; }

 private:
  PatternKind kind_;
  std::string text_;
  std::shared_ptr<RegexPattern const> regex_;
};

}  // namespace expertmesh

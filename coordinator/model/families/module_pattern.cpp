#include "coordinator/model/families/module_pattern.h"

#include <string_view>
#include <utility>
#include <vector>

namespace expertmesh {
namespace {

// Whether `pattern`, in which * stands for anything, matches the start of `name` up to a dot or the end.
bool begins_with(std::string_view name, std::string_view pattern) {
  std::size_t const star = pattern.find('*');
  std::string_view const literal = pattern.substr(0, star);
  if (!name.starts_with(literal)) return false;
  if (star == std::string_view::npos) return name.size() == literal.size() || name[literal.size()] == '.';
  for (std::size_t skip = literal.size(); skip <= name.size(); ++skip)
    if (begins_with(name.substr(skip), pattern.substr(star + 1))) return true;
  return false;
}

// Whether whole components of a dotted name are what the pattern says.
bool names_part_of(std::string_view pattern, std::string_view name) {
  while (!begins_with(name, pattern)) {
    std::size_t const dot = name.find('.');
    if (dot == std::string_view::npos) return false;
    name.remove_prefix(dot + 1);
  }
  return true;
}

}  // namespace

ModulePattern::ModulePattern(PatternKind kind, std::string text) : kind_(kind), text_(std::move(text)) {
  if (kind_ == PatternKind::regex) regex_ = std::make_shared<RegexPattern const>(text_);
}

bool ModulePattern::matches(std::string const& module) const {
  switch (kind_) {
    case PatternKind::everything:
      return true;
    case PatternKind::components:
      return names_part_of(text_, module);
    case PatternKind::part:
      return module.find(text_) != std::string::npos;
    case PatternKind::name:
      return module == text_;
    case PatternKind::regex: {
      std::vector<RegexPattern::Match> found;
      regex_->matches(module, found);
      return !found.empty() && found.front().begin == 0;
    }
  }
  return false;
}

}  // namespace expertmesh

// tokenizer.json's `normalizer`: text -> text, before anything is cut.
#pragma once
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace expertmesh {

class Normalizer {
 public:
  explicit Normalizer(nlohmann::json const& spec);  // null: changes nothing. ModelError for an unknown kind.
  explicit Normalizer(std::function<std::string(std::string const&)> step) { steps_.emplace_back(std::move(step)); }
  [[nodiscard]] std::string operator()(std::string text) const;

 private:
  void add(nlohmann::json const& spec);
  std::vector<std::function<std::string(std::string)>> steps_;
};

// Literal replacement of every occurrence, left to right.
std::string replaced(std::string const& text, std::string const& what, std::string const& with);
// What a Replace of `where` (normalizer or decoder) does: its pattern is a string or a regular expression.
std::function<std::string(std::string)> replacement(nlohmann::json const& spec, std::string const& where);

}  // namespace expertmesh

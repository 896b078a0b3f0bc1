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
  explicit Normalizer(std::function<std::string(std::string const&)> step) {
    steps_.push_back(keeping_start(std::move(step)));
  }
  [[nodiscard]] std::string operator()(std::string text) const;
  // at_start: whether the text begins the whole input. Cleared if the result begins with what stood behind a character
  // that was dropped.
  [[nodiscard]] std::string operator()(std::string text, bool& at_start) const;

 private:
  using Step = std::function<std::string(std::string const& text, bool& at_start)>;
  template <class Change>
  static Step keeping_start(Change change) {
    return [change = std::move(change)](std::string const& text, bool&) { return change(text); };
  }
  void add(nlohmann::json const& spec);
  std::vector<Step> steps_;
};

// Literal replacement of every occurrence, left to right.
std::string replaced(std::string const& text, std::string const& what, std::string const& with);
// What a Replace of `where` (normalizer or decoder) does: its pattern is a string or a regular expression.
// at_start as above.
std::function<std::string(std::string const& text, bool& at_start)> replacement(nlohmann::json const& spec,
                                                                                std::string const& where);

}  // namespace expertmesh

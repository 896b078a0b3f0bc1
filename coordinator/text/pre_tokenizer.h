// tokenizer.json's `pre_tokenizer`: text -> pieces that are encoded one by one.
#pragma once
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace expertmesh {

class PreTokenizer {
 public:
  explicit PreTokenizer(nlohmann::json const& spec);  // null: one piece. ModelError for an unknown kind.
  // at_start: `text` begins the whole input (Metaspace with prepend_scheme "first" asks).
  [[nodiscard]] std::vector<std::string> operator()(std::string text, bool at_start) const;

 private:
  using Pieces = std::vector<std::string>;
  void add(nlohmann::json const& spec);
  std::vector<std::function<void(std::string piece, bool at_start, Pieces& out)>> steps_;
};

}  // namespace expertmesh

// tokenizer.json's `pre_tokenizer`: text -> pieces that are encoded one by one.
#pragma once
#include <deque>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace expertmesh {

// Parts of a text, or of text made from it, which lives as long as this does.
class Pieces {
 public:
  struct Piece {
    std::string_view text;
    bool at_start;  // where the whole input starts (Metaspace with prepend_scheme "first" asks)
  };
  std::vector<Piece> list;  // none empty
  void add(std::string_view text, bool at_start) {
    if (!text.empty()) list.push_back({text, at_start});
  }
  void add_made(std::string text, bool at_start) { add(made_.emplace_back(std::move(text)), at_start); }

 private:
  std::deque<std::string> made_;
};

class PreTokenizer {
 public:
  using Step = std::function<void(Pieces::Piece const& piece, Pieces& out)>;
  explicit PreTokenizer(std::vector<Step> steps) : steps_(std::move(steps)) {}
  explicit PreTokenizer(nlohmann::json const& spec);  // null: one piece. ModelError for an unknown kind.
  [[nodiscard]] Pieces operator()(std::string_view text, bool at_start) const;
  // The last step spells bytes in the byte alphabet. It is left to the model, which gets the raw bytes.
  [[nodiscard]] bool byte_level() const { return byte_level_; }

 private:
  void add(nlohmann::json const& spec);
  void add_step(Step step);
  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace expertmesh

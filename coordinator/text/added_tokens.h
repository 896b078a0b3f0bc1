// tokenizer.json's `added_tokens`: strings that are one token wherever they stand in the text.
#pragma once
#include <array>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "common/base/strong_id.h"
#include "coordinator/text/normalizer.h"

namespace expertmesh {

struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool single_word = false;  // only between characters that are no word characters
  bool lstrip = false;       // swallows the white space before it
  bool rstrip = false;       // and after it
  bool normalized = false;   // matched in the normalised text
  bool special = false;      // dropped by skip_special_tokens
};

class AddedTokens {
 public:
  AddedTokens(nlohmann::json const& list, Normalizer const& normalizer);  // ModelError if malformed

  // The text between tokens (normalised), or a token.
  using Piece = std::variant<std::string, TokenId>;
  struct Section {
    Piece piece;
    bool at_start;  // begins the whole text
  };
  // Tokens that match the raw text are cut out first; what is left is normalised piece by piece and cut again by the
  // tokens that match normalised text. At one place the longest wins.
  [[nodiscard]] std::vector<Section> split(std::string_view text, Normalizer const& normalizer) const;

  [[nodiscard]] AddedToken const* find(TokenId id) const;
  [[nodiscard]] AddedToken const* find(std::string_view content) const;
  [[nodiscard]] std::vector<AddedToken> const& all() const { return tokens_; }

 private:
  struct Pattern {
    std::string text;
    std::size_t token;  // index into tokens_
  };
  using Patterns = std::array<std::vector<Pattern>, 256>;  // by first byte, longest first
  static void cut(std::string_view text, Patterns const& patterns, std::vector<AddedToken> const& tokens, bool at_start,
                  std::vector<Section>& out);

  std::vector<AddedToken> tokens_;
  std::unordered_map<TokenId, std::size_t> by_id_;
  Patterns raw_;
  Patterns normalized_;
};

}  // namespace expertmesh

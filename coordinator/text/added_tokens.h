// tokenizer.json's `added_tokens`: strings that are one token wherever they stand in the text.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "common/base/strong_id.h"
#include "coordinator/text/byte_trie.h"
#include "coordinator/text/normalizer.h"

namespace expertmesh {

struct AddedToken {
  TokenId id = 0;
  std::string content;       // as it is decoded
  bool single_word = false;  // only between characters that are no word characters
  bool lstrip = false;       // swallows the white space before it
  bool rstrip = false;       // and after it
  bool normalized = false;   // matched in the normalised text, its content normalised too
  bool special = false;      // dropped by skip_special_tokens
};

class AddedTokens {
 public:
  // Of tokens with the same content the last one counts. ModelError if malformed.
  AddedTokens(std::vector<AddedToken> tokens, Normalizer const& normalizer);
  static std::vector<AddedToken> read(nlohmann::json const& list);

  // A part of the text between tokens (normalised), or a token.
  using Part = std::variant<std::string, TokenId>;
  struct Section {
    Part part;
    bool at_start;  // begins the whole text
  };
  // Tokens that match the raw text are cut out first; what is left is normalised part by part and cut again by the
  // tokens that match normalised text. At one place the longest wins.
  [[nodiscard]] std::vector<Section> split(std::string_view text, Normalizer const& normalizer) const;

  [[nodiscard]] AddedToken const* find(TokenId id) const;
  [[nodiscard]] std::vector<AddedToken> const& all() const { return tokens_; }

 private:
  void cut(std::string_view text, ByteTrie const& patterns, bool at_start, std::vector<Section>& out) const;

  std::vector<AddedToken> tokens_;
  std::unordered_map<TokenId, std::size_t> by_id_;
  ByteTrie raw_;  // -> index into tokens_
  ByteTrie normalized_;
};

}  // namespace expertmesh

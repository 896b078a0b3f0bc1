// tokenizer.json's `decoder`: token strings -> text, whole or piece by piece.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

namespace expertmesh {

class TokenDecoder {
 public:
  explicit TokenDecoder(nlohmann::json const& spec);  // null: tokens joined by spaces. ModelError for an unknown kind.

  // The text of the tokens. A run of byte tokens that is not valid UTF-8 gives one U+FFFD for each of its bytes.
  [[nodiscard]] std::string whole(std::vector<std::string> const& tokens) const;
  // What one token stands for in the middle of a text; may be a part of a character.
  [[nodiscard]] std::string bytes_of(std::string const& token) const;

  // The same, token by token: text is given out as soon as no later token can change it. Only a malformed run of byte
  // tokens can differ: valid characters at its start are given out before it is known to be malformed.
  class Stream {
   public:
    explicit Stream(TokenDecoder const& decoder) : decoder_(&decoder), strip_left_(decoder.strip_start_) {}
    std::string push(std::string const& token);
    std::string finish();

   private:
    std::string take_byte_level(bool at_end);
    std::string take_run(bool run_ends);
    std::string without_leading(std::string text);
    TokenDecoder const* decoder_;
    std::string bytes_;       // not yet a whole character
    std::size_t strip_left_;  // leading strip characters still to be dropped
    bool first_ = true;
  };

 private:
  friend class Stream;
  void add(nlohmann::json const& spec);
  // One token through the replacements.
  [[nodiscard]] std::string replaced_token(std::string token) const;
  // The byte that "<0xXX>" stands for.
  [[nodiscard]] bool is_byte_token(std::string const& token, char& byte) const;

  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool joins_with_spaces_ = false;
  bool fused_ = false;
  std::vector<std::pair<std::string, std::string>> replacements_;
  std::string strip_content_;
  std::size_t strip_start_ = 0;  // at most this many strip_content_ are dropped from the start of the whole text
};

}  // namespace expertmesh

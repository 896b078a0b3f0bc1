// tokenizer.json's `decoder`: token strings -> text, whole or piece by piece.
#pragma once
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace expertmesh {

class TokenDecoder {
 public:
  // null: tokens joined by spaces. clean_up: spaces before punctuation and English contractions are dropped at the end
  // (tokenizer_config.json's clean_up_tokenization_spaces). ModelError for what is not supported.
  TokenDecoder(nlohmann::json const& spec, bool clean_up);

  // The text of the tokens. A run of byte tokens that is not valid UTF-8 gives one U+FFFD for each of its bytes.
  [[nodiscard]] std::string whole(std::vector<std::string> const& tokens) const;
  // What one token stands for in the middle of a text; may be a part of a character.
  [[nodiscard]] std::string bytes_of(std::string const& token) const;

  // The same, token by token: text is given out as soon as it is certain, but for two cases that are not waited for, in
  // which the pieces joined differ from the whole: a run of byte tokens that turns out to be malformed after valid
  // characters, and a space that cleaning up would drop before the next token.
  class Stream {
   public:
    explicit Stream(TokenDecoder const& decoder) : decoder_(&decoder), strip_left_(decoder.strip_start_) {}
    std::string push(std::string const& token);
    std::string finish();

   private:
    std::string take_byte_level(bool at_end);
    std::string take_run(bool run_ends);
    std::string finished(std::string text, bool at_end);
    std::string without_leading(std::string text);
    TokenDecoder const* decoder_;
    std::string bytes_;         // not yet a whole character
    bool in_run_ = false;       // of byte tokens
    std::size_t strip_left_;    // leading strip characters still to be dropped
    std::string held_;          // ends with U+FFFD, which may be a part of what comes
    bool first_ = true;         // no token yet
    bool first_joined_ = true;  // no token yet that counts a run of byte tokens as one
  };

 private:
  friend class Stream;
  // A token, alone; first: of the text.
  using Step = std::function<std::string(std::string token, bool first)>;
  void add(nlohmann::json const& spec);
  void add_step(nlohmann::json const& spec, std::string const& type);
  [[nodiscard]] static std::string through(std::vector<Step> const& steps, std::string token, bool first);
  // The byte that "<0xXX>" stands for.
  [[nodiscard]] bool is_byte_token(std::string const& token, char& byte) const;

  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool joins_with_spaces_ = false;
  bool fused_ = false;
  bool clean_up_ = false;
  std::vector<Step> steps_;        // of each token, before byte tokens are joined
  std::vector<Step> later_steps_;  // after that
  std::string strip_content_;
  std::size_t strip_start_ = 0;  // at most this many strip_content_ are dropped from the start of the whole text
};

}  // namespace expertmesh

// A Hugging Face tokenizer.json, or else a SentencePiece tokenizer.model: text <-> token ids. Immutable after loading,
// so any thread may use it.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/strong_id.h"
#include "coordinator/text/token_decoder.h"

namespace expertmesh {

class Tokenizer {
 public:
  // None if the directory has neither file. Throws ModelError naming the field for what is malformed or of a kind that
  // is not supported.
  static std::unique_ptr<Tokenizer> load(std::filesystem::path const& model_dir);
  ~Tokenizer();

  // Invalid UTF-8 is read as U+FFFD. add_special_tokens: what the post-processor puts around (BOS, EOS). A rendered
  // chat template brings its own: encode it without.
  [[nodiscard]] std::vector<TokenId> encode(std::string_view text, bool add_special_tokens) const;
  // Ids outside the vocabulary decode to nothing.
  [[nodiscard]] std::string decode(std::span<TokenId const> ids, bool skip_special_tokens) const;

  [[nodiscard]] std::size_t vocab_size() const;  // the largest id + 1, added tokens included
  // One token on its own, as log-probabilities show it: a part of a character as U+FFFD.
  [[nodiscard]] std::string token_text(TokenId id) const;
  [[nodiscard]] std::string token_bytes(TokenId id) const;  // the same as raw bytes

 private:
  friend class StreamDetokenizer;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl const> impl);
  // The token's string in the vocabulary, none if it is to be skipped or unknown.
  [[nodiscard]] std::string const* token_string(TokenId id, bool skip_special_tokens) const;
  [[nodiscard]] TokenDecoder const& decoder() const;
  std::unique_ptr<Impl const> impl_;
};

}  // namespace expertmesh

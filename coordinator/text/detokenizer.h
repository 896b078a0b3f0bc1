// Token ids -> text, id by id: what is given out never changes later, and never holds U+FFFD for a character that is
// only not complete yet. The pieces joined are decode() of the ids (but for malformed runs of byte tokens).
#pragma once
#include <string>

#include "coordinator/text/tokenizer.h"

namespace expertmesh {

class StreamDetokenizer {
 public:
  StreamDetokenizer(Tokenizer const& tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens), stream_(tokenizer.decoder()) {}

  std::string push(TokenId id) {
    auto const* token = tokenizer_.token_string(id, skip_special_tokens_);
    return token ? stream_.push(*token) : std::string();
  }
  std::string finish() { return stream_.finish(); }

 private:
  Tokenizer const& tokenizer_;
  bool skip_special_tokens_;
  TokenDecoder::Stream stream_;
};

}  // namespace expertmesh

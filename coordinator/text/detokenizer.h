// Token ids -> text, id by id: what is given out never changes later, and never holds U+FFFD for a character that is
// only not complete yet. The pieces joined are decode() of the ids (but for malformed runs of byte tokens).
#pragma once
#include <algorithm>
#include <span>
#include <string>

#include "coordinator/text/tokenizer.h"

namespace expertmesh {

class StreamDetokenizer {
 public:
  // shown: not skipped, though special; must outlive the detokenizer.
  StreamDetokenizer(Tokenizer const& tokenizer, bool skip_special_tokens, std::span<TokenId const> shown = {})
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens), shown_(shown), stream_(tokenizer.decoder()) {}

  std::string push(TokenId id) {
    bool const skip = skip_special_tokens_ && std::ranges::find(shown_, id) == shown_.end();
    auto const* token = tokenizer_.token_string(id, skip);
    return token ? stream_.push(*token) : std::string();
  }
  std::string finish() { return stream_.finish(); }

 private:
  Tokenizer const& tokenizer_;
  bool skip_special_tokens_;
  std::span<TokenId const> shown_;
  TokenDecoder::Stream stream_;
};

}  // namespace expertmesh

// A SentencePiece model file (tokenizer.model): the parts of its protobuf that matter for encoding and decoding.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "common/base/strong_id.h"

namespace expertmesh {

struct SentencePieceModel {
  enum class Type : std::uint8_t { unigram = 1, bpe = 2, word = 3, character = 4 };
  struct Piece {
    enum class Type : std::uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
    std::string text;
    float score = 0;
    Type type = Type::normal;
  };
  std::vector<Piece> pieces;  // by id
  Type type = Type::unigram;
  bool byte_fallback = false;
  bool whitespace_is_suffix = false;
  TokenId unknown = 0;
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;
  std::string charsmap;  // empty: none
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool has_denormalizer = false;

  // ModelError if malformed.
  static SentencePieceModel load(std::filesystem::path const& path);
};

// Throws ModelError: what is wrong with a tokenizer.model.
[[noreturn]] void refuse_sentencepiece(std::string const& what);

}  // namespace expertmesh

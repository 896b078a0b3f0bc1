// Byte-pair encoding (Sennrich et al. 2016) of one piece: the merge of lowest rank first, leftmost among equals.
#pragma once
#include <array>
#include <cstdint>
#include <string>

#include "coordinator/text/hashing.h"
#include "coordinator/text/token_model.h"

namespace expertmesh {

class Bpe final : public TokenModel {
 public:
  Bpe(nlohmann::json const& model, bool byte_level);  // tokenizer.json's `model` of type BPE; ModelError otherwise

  struct Merge {
    std::string left, right;
    std::uint32_t rank;
  };
  struct Options {
    std::string unknown;  // empty: characters that are not in the vocabulary are dropped
    bool byte_fallback = false;
    bool fuse_unknown = false;
    bool ignore_merges = false;
    bool byte_level = false;
    std::vector<std::string> atoms;  // tokens that a piece can be as a whole, which no merge reaches
  };
  Bpe(std::vector<std::pair<std::string, TokenId>> const& vocabulary, std::vector<Merge> const& merges,
      Options const& options);

  void encode(std::string_view piece, std::vector<TokenId>& out) const override;
  [[nodiscard]] std::optional<TokenId> id_of(std::string_view token) const override;

 private:
  struct Scratch;
  struct Result {
    std::uint32_t rank = 0;
    TokenId token = 0;
  };
  static std::uint64_t pair_key(TokenId a, TokenId b) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(a)) << 32 | static_cast<std::uint32_t>(b);
  }
  void build(std::vector<std::pair<std::string, TokenId>> const& vocabulary, std::vector<Merge> const& merges);
  void find_joints(std::vector<Merge> const& merges);
  void find_whole_words();
  // The symbol of the character at the start of `text` (a byte of byte level), if there is one, and its length.
  [[nodiscard]] std::pair<TokenId, std::size_t> first_symbol(std::string_view text) const;
  void cut(std::string_view piece, std::vector<TokenId>& out) const;
  void merge(Scratch& scratch, std::vector<TokenId>& out) const;
  void merge_short(std::vector<TokenId>& symbols, std::vector<TokenId>& out) const;
  void merge_long(Scratch& scratch, std::vector<TokenId>& out) const;

  Options options_;
  StringTable ids_;
  KeyTable<Result> merges_;
  // Texts that are one token: those that merging makes one, or, where merges are ignored, the whole vocabulary.
  StringTable whole_words_;
  std::array<TokenId, 256> byte_symbols_{};  // byte level: of each byte; else: of the ASCII characters
  KeyTable<TokenId> characters_;             // the others, by their bytes
  std::array<TokenId, 256> byte_tokens_{};   // byte fallback: of <0x00>…
  std::optional<TokenId> unknown_;
  // Pairs of neighbouring characters' symbols that some merge joins: between others a long piece falls apart into
  // pieces that are merged one by one. Not known where merges join byte tokens.
  KeyTable<char> joints_;
  bool knows_joints_ = true;
};

}  // namespace expertmesh

// Unigram language model (Kudo 2018): of all ways to cut a piece into tokens the one whose scores (log-probabilities)
// have the largest sum.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/text/byte_trie.h"
#include "coordinator/text/hashing.h"
#include "coordinator/text/token_model.h"

namespace expertmesh {

class Unigram final : public TokenModel {
 public:
  Unigram(nlohmann::json const& model,
          bool byte_level);  // tokenizer.json's `model` of type Unigram; ModelError otherwise

  struct Entry {
    std::string token;
    double score;
    bool in_text;  // or else only its id counts
  };
  struct Options {
    TokenId unknown = 0;
    double least_score = 0;
    bool byte_fallback = false;
    bool single_precision = false;  // sums are float, as SentencePiece has them
    bool byte_level = false;
  };
  Unigram(std::vector<Entry> const& entries, Options const& options);

  void encode(std::string_view piece, std::vector<TokenId>& out) const override;
  [[nodiscard]] std::optional<TokenId> id_of(std::string_view token) const override;

 private:
  void build(std::vector<Entry> const& entries);
  void add_part(std::string_view part, std::vector<TokenId>& out) const;

  Options options_;
  std::vector<double> scores_;  // by id
  StringTable ids_;
  ByteTrie trie_;
  double unknown_score_ = 0;
  std::array<TokenId, 256> byte_tokens_{};
};

}  // namespace expertmesh

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

  void encode(std::string_view piece, std::vector<TokenId>& out) const override;
  [[nodiscard]] std::optional<TokenId> id_of(std::string_view token) const override;

 private:
  void add_part(std::string_view part, std::vector<TokenId>& out) const;

  std::vector<double> scores_;  // by id
  StringTable ids_;
  ByteTrie trie_;
  TokenId unknown_ = 0;
  double unknown_score_ = 0;
  bool byte_fallback_ = false;
  bool byte_level_ = false;
  std::array<TokenId, 256> byte_tokens_{};
};

}  // namespace expertmesh

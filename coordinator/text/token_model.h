// tokenizer.json's `model`: one piece of text -> token ids.
#pragma once
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/strong_id.h"

namespace expertmesh {

constexpr TokenId kLargestId = 1 << 24;  // ids are counted up to the largest: one out of all proportion is refused

class TokenModel {
 public:
  // By its type. byte_level: pieces are given as raw bytes, which the vocabulary spells in the byte alphabet.
  // ModelError for an unknown type or a malformed model.
  static std::unique_ptr<TokenModel const> from_json(nlohmann::json const& model, bool byte_level);
  virtual ~TokenModel() = default;
  // Time O(n log n) in the piece's length at most. Thread-safe.
  virtual void encode(std::string_view piece, std::vector<TokenId>& out) const = 0;
  [[nodiscard]] virtual std::optional<TokenId> id_of(std::string_view token) const = 0;

  // The vocabulary's strings by id; none where it has no such id.
  [[nodiscard]] std::vector<std::optional<std::string>> const& tokens() const { return tokens_; }

 protected:
  void add_token(std::string const& token, TokenId id);

 private:
  std::vector<std::optional<std::string>> tokens_;
};

}  // namespace expertmesh

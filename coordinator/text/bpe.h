// Byte-pair encoding (Sennrich et al. 2016) of one piece: the merge of lowest rank first, leftmost among equals.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/base/strong_id.h"

namespace expertmesh {

class Bpe {
 public:
  explicit Bpe(nlohmann::json const& model);  // tokenizer.json's `model` of type BPE; ModelError otherwise
  // O(n log n) in the piece's length, also without a pre-tokenizer.
  void encode(std::string_view piece, std::vector<TokenId>& out) const;
  [[nodiscard]] std::optional<TokenId> id_of(std::string_view token) const;
  [[nodiscard]] std::unordered_map<std::string, TokenId> const& vocabulary() const { return ids_; }

 private:
  struct Merge {
    std::uint32_t rank;
    TokenId result;
  };
  static std::uint64_t pair_key(TokenId a, TokenId b) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(a)) << 32 | static_cast<std::uint32_t>(b);
  }
  void add_unknown(std::string_view character, std::vector<TokenId>& symbols, bool& after_unknown) const;

  std::unordered_map<std::string, TokenId> ids_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::vector<TokenId> byte_ids_;  // [256] of <0x00>… where all of them are there and byte_fallback is on
  std::optional<TokenId> unknown_;
  bool byte_fallback_ = false;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
};

}  // namespace expertmesh

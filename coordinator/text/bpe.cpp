#include "coordinator/text/bpe.h"

#include <spdlog/fmt/fmt.h>

#include <array>
#include <cstdio>
#include <queue>

#include "coordinator/text/json_fields.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

constexpr TokenId kNoToken = -1;  // a missing byte token; never leaves this file

std::string byte_token(unsigned byte) {
  std::array<char, 8> text{};
  std::snprintf(text.data(), text.size(), "<0x%02X>", byte);
  return text.data();
}

}  // namespace

Bpe::Bpe(Json const& model) {
  std::string const where = "model";
  auto const type = json_field_or<std::string>(model, "type", "BPE", where);
  if (type != "BPE") tokenizer_error(where, "type '" + type + "' is not supported");
  if (json_field_or(model, "dropout", 0.0, where) != 0.0) tokenizer_error(where, "dropout is not supported");
  for (char const* field : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!json_field_or<std::string>(model, field, "", where).empty())
      tokenizer_error(where, std::string("field '") + field + "' is not supported");
  byte_fallback_ = json_field_or(model, "byte_fallback", false, where);
  fuse_unknown_ = json_field_or(model, "fuse_unk", false, where);
  ignore_merges_ = json_field_or(model, "ignore_merges", false, where);
  auto const& vocabulary = json_part(model, "vocab", where);
  if (!vocabulary.is_object()) tokenizer_error(where, "field 'vocab' has the wrong type");
  ids_.reserve(vocabulary.size());
  for (auto const& [token, id] : vocabulary.items()) {
    auto const value = json_value<TokenId>(id, "vocab/" + token, where);
    if (value < 0) tokenizer_error(where, "token '" + token + "' has a negative id");
    ids_.emplace(token, value);
  }
  if (auto const unknown = json_field_or<std::string>(model, "unk_token", "", where); !unknown.empty())
    unknown_ = id_of(unknown);

  auto const& merges = json_part(model, "merges", where);
  if (!merges.is_array()) tokenizer_error(where, "field 'merges' is not a list");
  merges_.reserve(merges.size());
  std::uint32_t rank = 0;
  for (auto const& merge : merges) {
    std::string left;
    std::string right;
    if (merge.is_string()) {
      auto const text = merge.get<std::string>();
      auto const space = text.find(' ');
      if (space == std::string::npos) tokenizer_error(where, "merge '" + text + "' is not a pair");
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    } else {
      tokenizer_error(where, "merge " + std::to_string(rank) + " is not a pair of strings");
    }
    auto const a = id_of(left);
    auto const b = id_of(right);
    auto const both = id_of(left + right);
    if (!a || !b || !both)
      tokenizer_error(where, fmt::format("merge {} ('{}' '{}') is not in the vocabulary", rank, left, right));
    merges_.try_emplace(pair_key(*a, *b), Merge{rank++, *both});
  }
  if (byte_fallback_)
    for (unsigned byte = 0; byte < 256; ++byte) byte_ids_.push_back(id_of(byte_token(byte)).value_or(kNoToken));
}

std::optional<TokenId> Bpe::id_of(std::string_view token) const {
  auto const place = ids_.find(std::string(token));
  return place == ids_.end() ? std::nullopt : std::optional(place->second);
}

void Bpe::add_unknown(std::string_view character, std::vector<TokenId>& symbols, bool& after_unknown) const {
  if (byte_fallback_) {
    bool all = true;
    for (char byte : character) all = all && byte_ids_[static_cast<unsigned char>(byte)] != kNoToken;
    if (all) {
      for (char byte : character) symbols.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
      after_unknown = false;
      return;
    }
  }
  if (unknown_ && !(fuse_unknown_ && after_unknown)) symbols.push_back(*unknown_);
  after_unknown = true;
}

void Bpe::encode(std::string_view piece, std::vector<TokenId>& out) const {
  if (ignore_merges_)
    if (auto const whole = id_of(piece)) {
      out.push_back(*whole);
      return;
    }
  std::vector<TokenId> symbols;
  bool after_unknown = false;
  for (std::string_view rest = piece; !rest.empty();) {
    std::size_t const length = character_length(rest);
    if (auto const id = id_of(rest.substr(0, length))) {
      symbols.push_back(*id);
      after_unknown = false;
    } else {
      add_unknown(rest.substr(0, length), symbols, after_unknown);
    }
    rest.remove_prefix(length);
  }

  // A doubly linked list of symbols and a heap of possible merges; an entry whose symbols have changed since is
  // skipped.
  struct Candidate {
    std::uint32_t rank;
    std::uint32_t left;  // position of the left symbol
    TokenId a, b;        // what it was when the candidate was made
    bool operator>(Candidate const& o) const { return rank != o.rank ? rank > o.rank : left > o.left; }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  auto const count = static_cast<std::uint32_t>(symbols.size());
  std::vector<std::uint32_t> next(count);
  std::vector<std::uint32_t> previous(count);
  auto const offer = [&](std::uint32_t left) {
    if (left >= count || next[left] >= count) return;
    auto const merge = merges_.find(pair_key(symbols[left], symbols[next[left]]));
    if (merge != merges_.end()) candidates.push({merge->second.rank, left, symbols[left], symbols[next[left]]});
  };
  for (std::uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;  // of the first: wraps to a position that is none
  }
  for (std::uint32_t i = 0; i < count; ++i) offer(i);
  while (!candidates.empty()) {
    Candidate const c = candidates.top();
    candidates.pop();
    std::uint32_t const right = next[c.left];
    if (symbols[c.left] != c.a || right >= count || symbols[right] != c.b) continue;
    symbols[c.left] = merges_.at(pair_key(c.a, c.b)).result;
    symbols[right] = kNoToken;
    next[c.left] = next[right];
    if (next[right] < count) previous[next[right]] = c.left;
    offer(c.left);
    if (previous[c.left] < count) offer(previous[c.left]);
  }
  for (TokenId symbol : symbols)
    if (symbol != kNoToken) out.push_back(symbol);
}

}  // namespace expertmesh

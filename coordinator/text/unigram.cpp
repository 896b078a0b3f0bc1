#include "coordinator/text/unigram.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

constexpr double kUnknownPenalty = 10;  // below the least score; SentencePiece's
constexpr TokenId kNoToken = -1;

}  // namespace

Unigram::Unigram(Json const& model, bool byte_level) : byte_level_(byte_level) {
  std::string const where = "model";
  auto const& list = json_part(model, "vocab", where);
  if (!list.is_array() || list.empty()) tokenizer_error(where, "field 'vocab' is no list of pairs");
  byte_fallback_ = json_field_or(model, "byte_fallback", false, where);
  unknown_ = json_field<TokenId>(model, "unk_id", where);
  if (unknown_ < 0 || static_cast<std::size_t>(unknown_) >= list.size())
    tokenizer_error(where, "unk_id " + std::to_string(unknown_) + " is not in the vocabulary");
  std::vector<std::pair<std::string, std::uint32_t>> entries;
  ids_.reserve(list.size());
  double least = 0;
  for (std::size_t id = 0; id < list.size(); ++id) {
    auto const& entry = list[id];
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number())
      tokenizer_error(where, fmt::format("vocab entry {} is not a string with its score", id));
    auto const token = entry[0].get<std::string>();
    add_token(token, static_cast<TokenId>(id));
    ids_.put(token, static_cast<TokenId>(id));
    entries.emplace_back(token, static_cast<std::uint32_t>(id));
    scores_.push_back(entry[1].get<double>());
    if (!std::isfinite(scores_.back())) tokenizer_error(where, fmt::format("vocab entry {} has no finite score", id));
    least = id == 0 ? scores_[0] : std::min(least, scores_.back());
  }
  trie_ = ByteTrie(std::move(entries));
  unknown_score_ = least - kUnknownPenalty;
  for (unsigned byte = 0; byte < 256; ++byte)
    byte_tokens_[byte] = byte_fallback_ ? id_of(fmt::format("<0x{:02X}>", byte)).value_or(kNoToken) : kNoToken;
}

std::optional<TokenId> Unigram::id_of(std::string_view token) const {
  auto const* id = ids_.find(token);
  return id ? std::optional(*id) : std::nullopt;
}

void Unigram::encode(std::string_view given, std::vector<TokenId>& out) const {
  std::string const spelled = byte_level_ ? to_byte_alphabet(given) : std::string();
  std::string_view const piece = byte_level_ ? std::string_view(spelled) : given;
  // By end of a token: the best way to get there (Viterbi).
  struct Node {
    double score = 0;
    std::size_t begin = std::string::npos;  // of its last token; none yet
    bool unknown = false;
  };
  static thread_local std::vector<Node> best;
  best.assign(piece.size() + 1, {});
  for (std::size_t at = 0; at < piece.size();) {
    std::size_t const character = character_length(piece.substr(at));
    bool covered = false;
    auto const offer = [&](std::size_t length, double score, bool unknown) {
      Node& node = best[at + length];
      double const sum = score + best[at].score;
      if (node.begin == std::string::npos || sum > node.score) node = {sum, at, unknown};
      covered = covered || length == character;
    };
    trie_.prefixes(piece.substr(at), [&](std::size_t length, std::uint32_t id) {
      offer(length, scores_[id], static_cast<TokenId>(id) == unknown_);
    });
    if (!covered) offer(character, unknown_score_, true);
    at += character;
  }
  static thread_local std::vector<std::size_t> bounds;  // of the parts, from the end; unknown neighbours are one part
  bounds.clear();
  bool after_unknown = false;  // the part to the right
  for (std::size_t end = piece.size(); end > 0; end = best[end].begin) {
    if (!(after_unknown && best[end].unknown)) bounds.push_back(end);
    after_unknown = best[end].unknown;
  }
  std::size_t begin = 0;
  for (auto end = bounds.rbegin(); end != bounds.rend(); begin = *end++)
    add_part(piece.substr(begin, *end - begin), out);
}

void Unigram::add_part(std::string_view part, std::vector<TokenId>& out) const {
  auto const byte_token = [&](char byte) { return byte_tokens_[static_cast<unsigned char>(byte)]; };
  if (auto const* id = ids_.find(part))
    out.push_back(*id);
  else if (byte_fallback_ && std::ranges::none_of(part, [&](char byte) { return byte_token(byte) == kNoToken; }))
    for (char byte : part) out.push_back(byte_token(byte));
  else
    out.push_back(unknown_);
}

}  // namespace expertmesh

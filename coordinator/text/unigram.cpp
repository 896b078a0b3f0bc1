#include "coordinator/text/unigram.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

constexpr double kUnknownPenalty = 10;  // below the least score; SentencePiece's
constexpr TokenId kNoByteToken = -1;

// The tokenizers library reads a fraction as its digits by a power of ten, each rounded: the result may be one bit off
// the nearest number, and where two cuts of a text add up to the same score that bit decides between them.
double score_of(Json const& number) {
  auto const value = number.get<double>();
  if (!number.is_number_float()) return value;
  std::array<char, 32> text{};
  auto const end = std::to_chars(text.begin(), text.end(), std::abs(value), std::chars_format::scientific).ptr;
  auto const* const power = std::find(text.begin(), end, 'e');
  std::uint64_t digits = 0;
  int exponent = 0;
  std::from_chars(power + (power[1] == '+' ? 2 : 1), end, exponent);
  for (auto const* c = text.begin(); c != power; ++c)
    if (*c != '.') digits = digits * 10 + static_cast<std::uint64_t>(*c - '0');
  if (power > text.begin() + 1) exponent -= static_cast<int>(power - text.begin()) - 2;
  auto const whole = static_cast<double>(digits);
  double const read = exponent < 0 ? whole / std::pow(10.0, -exponent) : whole * std::pow(10.0, exponent);
  return std::copysign(read, value);
}

}  // namespace

Unigram::Unigram(Json const& model, bool byte_level) {
  std::string const where = "model";
  auto const& list = json_part(model, "vocab", where);
  if (!list.is_array() || list.empty()) tokenizer_error(where, "field 'vocab' is no list of pairs");
  options_.byte_level = byte_level;
  options_.byte_fallback = json_field_or(model, "byte_fallback", false, where);
  options_.unknown = json_field<TokenId>(model, "unk_id", where);
  if (options_.unknown < 0 || static_cast<std::size_t>(options_.unknown) >= list.size())
    tokenizer_error(where, "unk_id " + std::to_string(options_.unknown) + " is not in the vocabulary");
  std::vector<Entry> entries;
  for (auto const& entry : list) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number())
      tokenizer_error(where, fmt::format("vocab entry {} is not a string with its score", entries.size()));
    if (!std::isfinite(entry[1].get<double>()))
      tokenizer_error(where, fmt::format("vocab entry {} has no finite score", entries.size()));
    entries.push_back({entry[0].get<std::string>(), score_of(entry[1]), true});
  }
  options_.least_score = std::ranges::min_element(entries, {}, &Entry::score)->score;
  build(entries);
}

Unigram::Unigram(std::vector<Entry> const& entries, Options const& options) : options_(options) {
  build(entries);
}

void Unigram::build(std::vector<Entry> const& entries) {
  std::vector<std::pair<std::string, std::uint32_t>> in_text;
  ids_.reserve(entries.size());
  for (std::size_t id = 0; id < entries.size(); ++id) {
    add_token(entries[id].token, static_cast<TokenId>(id));
    ids_.put(entries[id].token, static_cast<TokenId>(id));
    scores_.push_back(entries[id].score);
    if (entries[id].in_text) in_text.emplace_back(entries[id].token, static_cast<std::uint32_t>(id));
  }
  trie_ = ByteTrie(std::move(in_text));
  unknown_score_ = options_.least_score - kUnknownPenalty;
  for (unsigned byte = 0; byte < 256; ++byte)
    byte_tokens_[byte] =
        options_.byte_fallback ? id_of(fmt::format("<0x{:02X}>", byte)).value_or(kNoByteToken) : kNoByteToken;
}

std::optional<TokenId> Unigram::id_of(std::string_view token) const {
  auto const* id = ids_.find(token);
  return id ? std::optional(*id) : std::nullopt;
}

void Unigram::encode(std::string_view given, std::vector<TokenId>& out) const {
  std::string const spelled = options_.byte_level ? to_byte_alphabet(given) : std::string();
  std::string_view const piece = options_.byte_level ? std::string_view(spelled) : given;
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
      double sum = score + best[at].score;
      if (options_.single_precision) sum = static_cast<float>(sum);
      if (node.begin == std::string::npos || sum > node.score) node = {sum, at, unknown};
      covered = covered || length == character;
    };
    trie_.prefixes(piece.substr(at), [&](std::size_t length, std::uint32_t id) {
      offer(length, scores_[id], static_cast<TokenId>(id) == options_.unknown);
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
  else if (options_.byte_fallback &&
           std::ranges::none_of(part, [&](char byte) { return byte_token(byte) == kNoByteToken; }))
    for (char byte : part) out.push_back(byte_token(byte));
  else
    out.push_back(options_.unknown);
}

}  // namespace expertmesh

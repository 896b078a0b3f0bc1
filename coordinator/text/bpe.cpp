#include "coordinator/text/bpe.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <limits>
#include <queue>

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

constexpr TokenId kNoToken = -1;  // never leaves this file
constexpr std::uint32_t kNoRank = std::numeric_limits<std::uint32_t>::max();
// Symbols that are merged by looking at all pairs again and again, without a heap.
constexpr std::size_t kShort = 40;

// Up to four bytes, as a key that is none of another character.
std::uint64_t character_key(std::string_view character) {
  std::uint32_t key = 0;
  std::memcpy(&key, character.data(), std::min<std::size_t>(character.size(), sizeof(key)));
  return key;
}

bool is_one_character(std::string_view text) {
  return !text.empty() && character_length(text) == text.size();
}

std::vector<Bpe::Merge> merges_of(Json const& model) {
  std::string const where = "model";
  auto const& list = json_part(model, "merges", where);
  if (!list.is_array()) tokenizer_error(where, "field 'merges' is not a list");
  std::vector<Bpe::Merge> merges;
  merges.reserve(list.size());
  for (auto const& merge : list) {
    if (merge.is_string()) {
      auto const text = merge.get<std::string>();
      auto const space = text.find(' ');
      if (space == std::string::npos) tokenizer_error(where, "merge '" + text + "' is not a pair");
      merges.push_back({text.substr(0, space), text.substr(space + 1), static_cast<std::uint32_t>(merges.size())});
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      merges.push_back(
          {merge[0].get<std::string>(), merge[1].get<std::string>(), static_cast<std::uint32_t>(merges.size())});
    } else {
      tokenizer_error(where, "merge " + std::to_string(merges.size()) + " is not a pair of strings");
    }
  }
  return merges;
}

std::vector<std::pair<std::string, TokenId>> vocabulary_of(Json const& model) {
  std::string const where = "model";
  auto const& list = json_part(model, "vocab", where);
  if (!list.is_object()) tokenizer_error(where, "field 'vocab' has the wrong type");
  std::vector<std::pair<std::string, TokenId>> vocabulary;
  vocabulary.reserve(list.size());
  for (auto const& [token, id] : list.items())
    vocabulary.emplace_back(token, json_value<TokenId>(id, "vocab/" + token, where));
  return vocabulary;
}

}  // namespace

// What one thread needs while it merges, kept from piece to piece.
struct Bpe::Scratch {
  std::vector<TokenId> symbols;
  // Of merge_long, by position of a symbol: its neighbours, and what it and the next one merge to.
  std::vector<std::uint32_t> next, previous;
  std::vector<Result> pairs;
  std::vector<std::uint64_t> candidates;  // a heap of rank << 32 | position
};

Bpe::Bpe(Json const& model, bool byte_level) {
  std::string const where = "model";
  if (json_field_or(model, "dropout", 0.0, where) != 0.0) tokenizer_error(where, "dropout is not supported");
  for (char const* field : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!json_field_or<std::string>(model, field, "", where).empty())
      tokenizer_error(where, std::string("field '") + field + "' is not supported");
  options_ = {.unknown = json_field_or<std::string>(model, "unk_token", "", where),
              .byte_fallback = json_field_or(model, "byte_fallback", false, where),
              .fuse_unknown = json_field_or(model, "fuse_unk", false, where),
              .ignore_merges = json_field_or(model, "ignore_merges", false, where),
              .byte_level = byte_level,
              .atoms = {}};
  build(vocabulary_of(model), merges_of(model));
}

Bpe::Bpe(std::vector<std::pair<std::string, TokenId>> const& vocabulary, std::vector<Merge> const& merges,
         Options const& options)
    : options_(options) {
  build(vocabulary, merges);
}

void Bpe::build(std::vector<std::pair<std::string, TokenId>> const& vocabulary, std::vector<Merge> const& merges) {
  ids_.reserve(vocabulary.size());
  byte_symbols_.fill(kNoToken);
  byte_tokens_.fill(kNoToken);
  for (auto const& [token, id] : vocabulary) {
    add_token(token, id);
    ids_.put(token, id);
    if (!is_one_character(token)) continue;
    if (options_.byte_level) {
      if (auto const byte = from_byte_alphabet(token)) byte_symbols_[static_cast<unsigned char>((*byte)[0])] = id;
    } else if (token.size() == 1) {
      byte_symbols_[static_cast<unsigned char>(token[0])] = id;
    } else {
      characters_.put(character_key(token), id);
    }
  }
  if (!options_.unknown.empty()) unknown_ = id_of(options_.unknown);
  if (options_.byte_fallback)
    for (unsigned byte = 0; byte < 256; ++byte)
      byte_tokens_[byte] = id_of(fmt::format("<0x{:02X}>", byte)).value_or(kNoToken);

  merges_.reserve(merges.size());
  for (auto const& [left, right, rank] : merges) {
    auto const a = id_of(left);
    auto const b = id_of(right);
    auto const both = id_of(left + right);
    if (!a || !b || !both)
      tokenizer_error("model", fmt::format("merge {} ('{}' '{}') is not in the vocabulary", rank, left, right));
    merges_.put(pair_key(*a, *b), {rank, *both});
  }
  find_joints(merges);
  find_whole_words();
}

void Bpe::find_joints(std::vector<Merge> const& merges) {
  auto const is_byte_or_unknown = [&](std::string const& token) {
    TokenId const id = *id_of(token);
    return id == unknown_ || (options_.byte_fallback && std::ranges::find(byte_tokens_, id) != byte_tokens_.end());
  };
  for (auto const& [left, right, rank] : merges) {
    if (left.empty() || right.empty() || is_byte_or_unknown(left) || is_byte_or_unknown(right)) {
      knows_joints_ = false;
      return;
    }
    auto const a = id_of(std::string_view(left).substr(previous_character(left, left.size())));
    auto const b = id_of(std::string_view(right).substr(0, character_length(right)));
    if (a && b) joints_.put(pair_key(*a, *b), 1);
  }
}

void Bpe::find_whole_words() {
  whole_words_.reserve(tokens().size());
  std::vector<TokenId> ids;
  for (std::size_t id = 0; id < tokens().size(); ++id) {
    if (!tokens()[id]) continue;
    auto const text = options_.byte_level ? from_byte_alphabet(*tokens()[id]) : tokens()[id];
    if (!text || text->empty()) continue;
    if (!options_.ignore_merges) {
      ids.clear();
      cut(*text, ids);
      if (ids.size() != 1 || ids[0] != static_cast<TokenId>(id)) continue;
    }
    whole_words_.put(*text, static_cast<TokenId>(id));
  }
  for (auto const& atom : options_.atoms) whole_words_.put(atom, *id_of(atom));
}

std::optional<TokenId> Bpe::id_of(std::string_view token) const {
  auto const* id = ids_.find(token);
  return id ? std::optional(*id) : std::nullopt;
}

std::pair<TokenId, std::size_t> Bpe::first_symbol(std::string_view text) const {
  auto const byte = static_cast<unsigned char>(text[0]);
  if (options_.byte_level || byte < 0x80) return {byte_symbols_[byte], 1};
  std::size_t const length = character_length(text);
  auto const* id = characters_.find(character_key(text.substr(0, length)));
  return {id ? *id : kNoToken, length};
}

void Bpe::encode(std::string_view piece, std::vector<TokenId>& out) const {
  if (auto const* id = whole_words_.find(piece))
    out.push_back(*id);
  else
    cut(piece, out);
}

void Bpe::cut(std::string_view piece, std::vector<TokenId>& out) const {
  static thread_local Scratch scratch;
  auto& symbols = scratch.symbols;
  symbols.clear();
  bool const falls_apart = knows_joints_ && piece.size() > kShort;
  std::size_t begin = 0;  // of the text of `symbols`
  std::size_t end = 0;
  bool after_special = false;  // the last symbol is none of a character: nothing joins it
  auto const flush = [&](std::size_t next_begin) {
    auto const* whole = falls_apart && symbols.size() > 1 && !options_.ignore_merges
                            ? whole_words_.find(piece.substr(begin, end - begin))
                            : nullptr;
    if (whole)
      out.push_back(*whole);
    else
      merge(scratch, out);
    symbols.clear();
    begin = next_begin;
  };
  auto const add = [&](TokenId symbol, std::size_t at, std::size_t length, bool special) {
    if (falls_apart && !symbols.empty() &&
        (special || after_special || !joints_.find(pair_key(symbols.back(), symbol))))
      flush(at);
    symbols.push_back(symbol);
    end = at + length;
    after_special = special;
  };
  bool unknown_waits = false;  // to be fused with the next one; byte tokens go before it
  for (std::size_t at = 0; at < piece.size();) {
    auto const [symbol, length] = first_symbol(piece.substr(at));
    if (symbol != kNoToken) {
      if (unknown_waits) add(*unknown_, at, 0, true);
      unknown_waits = false;
      add(symbol, at, length, false);
      at += length;
      continue;
    }
    std::string const character =
        options_.byte_level ? to_byte_alphabet(piece.substr(at, 1)) : std::string(piece.substr(at, length));
    auto const byte_token = [&](char byte) { return byte_tokens_[static_cast<unsigned char>(byte)]; };
    if (std::ranges::none_of(character, [&](char byte) { return byte_token(byte) == kNoToken; })) {
      for (char byte : character) add(byte_token(byte), at, length, true);
    } else if (unknown_) {
      if (unknown_waits && !options_.fuse_unknown) add(*unknown_, at, 0, true);
      unknown_waits = true;
    }
    at += length;
  }
  if (unknown_waits) add(*unknown_, piece.size(), 0, true);
  if (!symbols.empty()) flush(piece.size());
}

void Bpe::merge(Scratch& scratch, std::vector<TokenId>& out) const {
  if (scratch.symbols.size() <= kShort)
    merge_short(scratch.symbols, out);
  else
    merge_long(scratch, out);
}

void Bpe::merge_short(std::vector<TokenId>& symbols, std::vector<TokenId>& out) const {
  std::array<Result, kShort + 1> pairs{};  // of each symbol and the next one
  std::size_t count = symbols.size();
  auto const look = [&](std::size_t i) {
    auto const* result = merges_.find(pair_key(symbols[i], symbols[i + 1]));
    pairs[i] = result ? *result : Result{kNoRank, kNoToken};
  };
  for (std::size_t i = 0; i + 1 < count; ++i) look(i);
  while (count > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < count; ++i)
      if (pairs[i].rank < pairs[best].rank) best = i;
    if (pairs[best].rank == kNoRank) break;
    symbols[best] = pairs[best].token;
    --count;
    for (std::size_t i = best + 1; i < count; ++i) {
      symbols[i] = symbols[i + 1];
      pairs[i] = pairs[i + 1];
    }
    if (best > 0) look(best - 1);
    if (best + 1 < count) look(best);
  }
  out.insert(out.end(), symbols.begin(), symbols.begin() + static_cast<std::ptrdiff_t>(count));
}

// A doubly linked list of symbols and a heap of the merges that are possible; one that is no longer is skipped.
void Bpe::merge_long(Scratch& scratch, std::vector<TokenId>& out) const {
  auto& symbols = scratch.symbols;
  auto& next = scratch.next;
  auto& previous = scratch.previous;
  auto& pairs = scratch.pairs;
  auto& candidates = scratch.candidates;
  auto const count = static_cast<std::uint32_t>(symbols.size());
  next.resize(count);
  previous.resize(count);
  pairs.resize(count);
  candidates.clear();
  auto const look = [&](std::uint32_t at) {
    auto const* result = next[at] < count ? merges_.find(pair_key(symbols[at], symbols[next[at]])) : nullptr;
    pairs[at] = result ? *result : Result{kNoRank, kNoToken};
    return result ? std::uint64_t{result->rank} << 32 | at : ~std::uint64_t{0};
  };
  auto const later = std::greater<>();
  for (std::uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;  // of the first: wraps to a position that is none
  }
  for (std::uint32_t i = 0; i < count; ++i)
    if (auto const candidate = look(i); ~candidate) candidates.push_back(candidate);
  std::ranges::make_heap(candidates, later);
  auto const offer = [&](std::uint32_t at) {
    if (auto const candidate = look(at); ~candidate) {
      candidates.push_back(candidate);
      std::ranges::push_heap(candidates, later);
    }
  };
  while (!candidates.empty()) {
    std::ranges::pop_heap(candidates, later);
    std::uint64_t const candidate = candidates.back();
    candidates.pop_back();
    auto const left = static_cast<std::uint32_t>(candidate);
    if (pairs[left].rank != candidate >> 32) continue;
    std::uint32_t const right = next[left];
    symbols[left] = pairs[left].token;
    symbols[right] = kNoToken;
    pairs[right].rank = kNoRank;
    next[left] = next[right];
    if (next[right] < count) previous[next[right]] = left;
    offer(left);
    if (previous[left] < count) offer(previous[left]);
  }
  for (TokenId symbol : symbols)
    if (symbol != kNoToken) out.push_back(symbol);
}

}  // namespace expertmesh

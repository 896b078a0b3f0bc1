#include "coordinator/text/added_tokens.h"

#include <algorithm>

#include "coordinator/text/json_fields.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {

std::vector<AddedToken> AddedTokens::read(Json const& list) {
  std::vector<AddedToken> tokens;
  if (list.is_null()) return tokens;
  std::string const where = "added_tokens";
  if (!list.is_array()) tokenizer_error(where, "not a list");
  for (auto const& entry : list) {
    AddedToken token;
    token.id = json_field<TokenId>(entry, "id", where);
    token.content = json_field<std::string>(entry, "content", where);
    if (token.id < 0) tokenizer_error(where, "token '" + token.content + "' has a negative id");
    token.single_word = json_field_or(entry, "single_word", false, where);
    token.lstrip = json_field_or(entry, "lstrip", false, where);
    token.rstrip = json_field_or(entry, "rstrip", false, where);
    token.special = json_field_or(entry, "special", false, where);
    token.normalized = json_field_or(entry, "normalized", !token.special, where);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, Normalizer const& normalizer) : tokens_(std::move(tokens)) {
  using Entries = std::vector<std::pair<std::string, std::uint32_t>>;
  Entries raw;
  Entries normalized;
  // Special ones go first: of normalised contents that are the same the first one counts.
  std::stable_partition(tokens_.begin(), tokens_.end(), [](AddedToken const& token) { return token.special; });
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    AddedToken& token = tokens_[i];
    by_id_[token.id] = i;
    if (token.normalized) {
      std::string content = normalizer(token.content);
      if (content != token.content) token.special = false;  // the reference does not know it again when decoding
      token.content = std::move(content);
    }
    (token.normalized ? normalized : raw).emplace_back(token.content, static_cast<std::uint32_t>(i));
  }
  std::ranges::reverse(normalized);
  raw_ = ByteTrie(std::move(raw));
  normalized_ = ByteTrie(std::move(normalized));
}

AddedToken const* AddedTokens::find(TokenId id) const {
  auto const place = by_id_.find(id);
  return place == by_id_.end() ? nullptr : &tokens_[place->second];
}

namespace {

bool word_before(std::string_view text, std::size_t at) {
  if (at == 0) return false;
  std::size_t const begin = previous_character(text, at);
  return is_word_character(code_point(text.substr(begin, at - begin)));
}

bool word_after(std::string_view text, std::size_t at) {
  return at < text.size() && is_word_character(code_point(text.substr(at, character_length(text.substr(at)))));
}

std::size_t spaces_before(std::string_view text, std::size_t at, std::size_t least) {
  while (at > least) {
    std::size_t const begin = previous_character(text, at);
    if (begin < least || !is_space(code_point(text.substr(begin, at - begin)))) break;
    at = begin;
  }
  return at;
}

std::size_t spaces_after(std::string_view text, std::size_t at) {
  while (at < text.size()) {
    std::size_t const length = character_length(text.substr(at));
    if (!is_space(code_point(text.substr(at, length)))) break;
    at += length;
  }
  return at;
}

}  // namespace

void AddedTokens::cut(std::string_view text, ByteTrie const& patterns, bool at_start, std::vector<Section>& out) const {
  std::size_t pending = 0;  // start of the text not yet given out
  for (std::size_t at = 0; at < text.size();) {
    std::size_t length = 0;
    std::uint32_t index = 0;
    if (patterns.starts(text[at]))
      patterns.prefixes(text.substr(at), [&](std::size_t found, std::uint32_t value) {
        length = found;
        index = value;
      });
    if (length == 0) {
      ++at;
      continue;
    }
    AddedToken const& token = tokens_[index];
    std::size_t begin = at;
    std::size_t end = at + length;
    at = end;
    if (token.single_word && (word_before(text, begin) || word_after(text, end))) continue;
    // A match within the white space that the token before has swallowed counts, but where lstrip leaves nothing of it.
    if (token.lstrip) begin = std::max(pending, spaces_before(text, begin, std::min(begin, pending)));
    if (token.rstrip) end = spaces_after(text, end);
    if (begin > pending) out.push_back({std::string(text.substr(pending, begin - pending)), at_start && pending == 0});
    if (begin < end) out.push_back({token.id, at_start && begin == 0});
    pending = end;
  }
  if (pending < text.size()) out.push_back({std::string(text.substr(pending)), at_start && pending == 0});
}

std::vector<AddedTokens::Section> AddedTokens::split(std::string_view text, Normalizer const& normalizer) const {
  std::vector<Section> raw;
  cut(text, raw_, true, raw);
  std::vector<Section> sections;
  for (auto& section : raw) {
    if (auto* part = std::get_if<std::string>(&section.part)) {
      std::string const normal = normalizer(std::move(*part), section.at_start);
      cut(normal, normalized_, section.at_start, sections);
    } else {
      sections.push_back(std::move(section));
    }
  }
  return sections;
}

}  // namespace expertmesh

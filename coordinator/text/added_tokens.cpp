#include "coordinator/text/added_tokens.h"

#include <algorithm>

#include "coordinator/text/json_fields.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {

AddedTokens::AddedTokens(Json const& list, Normalizer const& normalizer) {
  if (list.is_null()) return;
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
    token.normalized = json_field_or(entry, "normalized", false, where);
    token.special = json_field_or(entry, "special", false, where);
    std::string const pattern = token.normalized ? normalizer(token.content) : token.content;
    if (!pattern.empty())
      (token.normalized ? normalized_ : raw_)[static_cast<unsigned char>(pattern[0])].push_back(
          {pattern, tokens_.size()});
    by_id_.emplace(token.id, tokens_.size());
    tokens_.push_back(std::move(token));
  }
  for (auto* patterns : {&raw_, &normalized_})
    for (auto& same_first : *patterns)
      std::ranges::stable_sort(same_first,
                               [](Pattern const& a, Pattern const& b) { return a.text.size() > b.text.size(); });
}

AddedToken const* AddedTokens::find(TokenId id) const {
  auto const place = by_id_.find(id);
  return place == by_id_.end() ? nullptr : &tokens_[place->second];
}

AddedToken const* AddedTokens::find(std::string_view content) const {
  auto const place = std::ranges::find(tokens_, content, &AddedToken::content);
  return place == tokens_.end() ? nullptr : &*place;
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

void AddedTokens::cut(std::string_view text, Patterns const& patterns, std::vector<AddedToken> const& tokens,
                      bool at_start, std::vector<Section>& out) {
  std::size_t pending = 0;  // start of the text not yet given out
  for (std::size_t at = 0; at < text.size();) {
    auto const& candidates = patterns[static_cast<unsigned char>(text[at])];
    auto const match =
        std::ranges::find_if(candidates, [&](Pattern const& p) { return text.substr(at).starts_with(p.text); });
    if (match == candidates.end()) {
      ++at;
      continue;
    }
    AddedToken const& token = tokens[match->token];
    std::size_t begin = at;
    std::size_t end = at + match->text.size();
    at = end;
    if (token.single_word && (word_before(text, begin) || word_after(text, end))) continue;
    if (begin < pending) continue;  // inside white space that the token before has swallowed
    if (token.lstrip) begin = spaces_before(text, begin, pending);
    if (token.rstrip) end = spaces_after(text, end);
    if (begin > pending) out.push_back({std::string(text.substr(pending, begin - pending)), at_start && pending == 0});
    out.push_back({token.id, at_start && begin == 0});
    pending = end;
    at = std::max(at, end);
  }
  if (pending < text.size()) out.push_back({std::string(text.substr(pending)), at_start && pending == 0});
}

std::vector<AddedTokens::Section> AddedTokens::split(std::string_view text, Normalizer const& normalizer) const {
  std::vector<Section> raw;
  cut(text, raw_, tokens_, true, raw);
  std::vector<Section> sections;
  for (auto& section : raw) {
    if (auto* piece = std::get_if<std::string>(&section.piece))
      cut(normalizer(std::move(*piece)), normalized_, tokens_, section.at_start, sections);
    else
      sections.push_back(std::move(section));
  }
  return sections;
}

}  // namespace expertmesh

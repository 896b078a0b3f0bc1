#include "coordinator/text/pre_tokenizer.h"

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/regex_pattern.h"
#include "coordinator/text/split.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

using Piece = Pieces::Piece;

// The pattern of GPT-2 (Radford et al. 2019).
constexpr char const* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string const kPreTokenizer = "pre_tokenizer";

// A split at what `find(text, matches)` finds.
template <class Find>
auto split_step(Find find, SplitBehavior behavior, bool invert = false) {
  return [find = std::move(find), behavior, invert](Piece const& piece, Pieces& out) {
    static thread_local std::vector<RegexPattern::Match> matches;
    matches.clear();
    find(piece.text, matches);
    split(piece, matches, behavior, invert, out);
  };
}

auto regex_step(std::string const& pattern, SplitBehavior behavior, bool invert = false) {
  return split_step([regex = RegexPattern(pattern)](
                        std::string_view text, std::vector<RegexPattern::Match>& out) { regex.matches(text, out); },
                    behavior, invert);
}

auto character_step(bool (*is)(char32_t), SplitBehavior behavior) {
  return split_step(
      [is](std::string_view text, std::vector<RegexPattern::Match>& out) { find_characters(text, is, out); }, behavior);
}

auto string_step(std::string const& what, SplitBehavior behavior, bool invert = false) {
  if (what.empty()) tokenizer_error(kPreTokenizer, "an empty split string");
  return split_step(
      [what](std::string_view text, std::vector<RegexPattern::Match>& out) { find_string(text, what, out); }, behavior,
      invert);
}

// Runs of word characters, and runs of what is neither that nor white space.
void split_words(Piece const& piece, Pieces& out) {
  enum class Kind : std::uint8_t { space, word, other };
  Kind previous = Kind::space;
  std::size_t begin = 0;
  for (std::size_t at = 0; at <= piece.text.size();) {
    std::size_t const length = at < piece.text.size() ? character_length(piece.text.substr(at)) : 1;
    char32_t const c = at < piece.text.size() ? code_point(piece.text.substr(at, length)) : U' ';
    Kind const kind = is_space(c) ? Kind::space : is_word_character(c) ? Kind::word : Kind::other;
    if (kind != previous) {
      if (previous != Kind::space) out.add(piece.text.substr(begin, at - begin), piece.at_start && begin == 0);
      begin = at;
    }
    previous = kind;
    at += length;
  }
}

void split_lengths(Piece const& piece, std::size_t characters, Pieces& out) {
  std::size_t begin = 0;
  std::size_t at = 0;
  for (std::size_t count = 1; at < piece.text.size(); ++count) {
    at += character_length(piece.text.substr(at));
    if (count % characters != 0 && at < piece.text.size()) continue;
    out.add(piece.text.substr(begin, at - begin), piece.at_start && begin == 0);
    begin = at;
  }
}

}  // namespace

PreTokenizer::PreTokenizer(Json const& spec) {
  if (!spec.is_null()) add(spec);
}

void PreTokenizer::add_step(Step step) {
  if (byte_level_) {  // it is not the last step, after all
    byte_level_ = false;
    steps_.emplace_back(
        [](Piece const& piece, Pieces& out) { out.add_made(to_byte_alphabet(piece.text), piece.at_start); });
  }
  steps_.push_back(std::move(step));
}

void PreTokenizer::add(Json const& spec) {
  auto const type = json_field<std::string>(spec, "type", kPreTokenizer);
  if (type == "Sequence") {
    auto const& steps = json_part(spec, "pretokenizers", kPreTokenizer);
    if (!steps.is_array()) tokenizer_error(kPreTokenizer, "field 'pretokenizers' is not a list");
    for (auto const& step : steps) add(step);
  } else if (type == "Split") {
    auto const& pattern = json_part(spec, "pattern", kPreTokenizer);
    SplitBehavior const behavior = split_behavior(json_field<std::string>(spec, "behavior", kPreTokenizer));
    bool const invert = json_field_or(spec, "invert", false, kPreTokenizer);
    if (pattern.contains("Regex"))
      add_step(regex_step(json_field<std::string>(pattern, "Regex", kPreTokenizer), behavior, invert));
    else
      add_step(string_step(json_field<std::string>(pattern, "String", kPreTokenizer), behavior, invert));
  } else if (type == "Digits") {
    bool const individual = json_field_or(spec, "individual_digits", false, kPreTokenizer);
    add_step(character_step(is_numeric, individual ? SplitBehavior::isolated : SplitBehavior::contiguous));
  } else if (type == "Punctuation") {
    auto const behavior = json_field_or<std::string>(spec, "behavior", "Isolated", kPreTokenizer);
    add_step(character_step(is_punctuation, split_behavior(behavior)));
  } else if (type == "Whitespace") {
    add_step(split_words);
  } else if (type == "WhitespaceSplit") {
    add_step(character_step(is_space, SplitBehavior::removed));
  } else if (type == "BertPreTokenizer") {
    add_step(character_step(is_space, SplitBehavior::removed));
    add_step(character_step(is_punctuation, SplitBehavior::isolated));
  } else if (type == "CharDelimiterSplit") {
    add_step(string_step(json_field<std::string>(spec, "delimiter", kPreTokenizer), SplitBehavior::removed));
  } else if (type == "FixedLength") {
    auto const length = json_field_or<std::size_t>(spec, "length", 5, kPreTokenizer);
    if (length == 0) tokenizer_error(kPreTokenizer, "field 'length' is 0");
    add_step([length](Piece const& piece, Pieces& out) { split_lengths(piece, length, out); });
  } else if (type == "ByteLevel") {
    if (json_field_or(spec, "add_prefix_space", true, kPreTokenizer))
      add_step([](Piece const& piece, Pieces& out) {
        if (piece.text.starts_with(' '))
          out.add(piece.text, piece.at_start);
        else
          out.add_made(" " + std::string(piece.text), piece.at_start);
      });
    if (json_field_or(spec, "use_regex", true, kPreTokenizer))
      add_step(regex_step(kGpt2Pattern, SplitBehavior::isolated));
    if (byte_level_) add_step([](Piece const& piece, Pieces& out) { out.add(piece.text, piece.at_start); });
    byte_level_ = true;
  } else if (type == "Metaspace") {
    auto const mark = json_field<std::string>(spec, "replacement", kPreTokenizer);
    auto const scheme = json_field_or<std::string>(spec, "prepend_scheme", "always", kPreTokenizer);
    if (scheme != "always" && scheme != "first" && scheme != "never")
      tokenizer_error(kPreTokenizer, "prepend_scheme '" + scheme + "' is not supported");
    if (!json_field_or(spec, "add_prefix_space", scheme != "never", kPreTokenizer) &&
        scheme != "never")  // the older spelling
      tokenizer_error(kPreTokenizer, "add_prefix_space false contradicts prepend_scheme '" + scheme + "'");
    add_step([mark, scheme](Piece const& piece, Pieces& out) {
      std::string text = replaced(std::string(piece.text), " ", mark);
      if ((scheme == "always" || (scheme == "first" && piece.at_start)) && !text.starts_with(mark))
        text.insert(0, mark);
      out.add_made(std::move(text), piece.at_start);
    });
    if (json_field_or(spec, "split", true, kPreTokenizer)) add_step(string_step(mark, SplitBehavior::merged_with_next));
  } else {
    tokenizer_error(kPreTokenizer, "kind '" + type + "' is not supported");
  }
}

Pieces PreTokenizer::operator()(std::string_view text, bool at_start) const {
  Pieces pieces;
  pieces.add(text, at_start);
  std::vector<Piece> before;
  for (auto const& step : steps_) {
    before.clear();
    before.swap(pieces.list);
    for (Piece const& piece : before) step(piece, pieces);
  }
  return pieces;
}

}  // namespace expertmesh

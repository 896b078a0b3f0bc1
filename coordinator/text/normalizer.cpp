#include "coordinator/text/normalizer.h"

#include <utf8proc.h>

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/charsmap.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/regex_pattern.h"
#include "coordinator/text/unicode_category.h"
#include "coordinator/text/unicode_form.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

// Each character by itself: change(c) is what stands for it.
template <class Change>
auto with_each(Change change) {
  return [change](std::string const& text, bool& at_start) {
    std::string out;
    out.reserve(text.size());
    std::string_view rest = text;
    while (!rest.empty()) {
      std::string_view const character = rest.substr(0, character_length(rest));
      change(code_point(character), character, out);
      if (rest.size() == text.size() && out.empty()) at_start = false;
      rest.remove_prefix(character.size());
    }
    return out;
  };
}

// Capital letters newer than the installed utf8proc may be (Unicode 16 and 17).
char32_t lower_case(char32_t c) {
  if (c == 0xA7CB) return 0x264;
  if (c == 0xA7DC) return 0x19B;
  if (c == 0x1C89 || c == 0xA7CC || c == 0xA7CE || c == 0xA7D2 || c == 0xA7D4 || c == 0xA7DA) return c + 1;
  if (c >= 0x10D50 && c <= 0x10D65) return c + 0x20;
  if (c >= 0x16EA0 && c <= 0x16EB8) return c + 0x1B;
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}

void add_lower_case(char32_t c, std::string_view, std::string& out) {
  if (c == 0x130)
    out += "i\xCC\x87";  // the one letter whose lower case is two characters
  else
    out += encode_utf8(lower_case(c));
}

void add_without_marks(char32_t c, std::string_view character, std::string& out) {
  auto const category = general_category(c);
  if (category < UTF8PROC_CATEGORY_MN || category > UTF8PROC_CATEGORY_ME) out += character;
}

// SentencePiece's "nmt" rule: control characters go, what looks like space is one.
void add_nmt(char32_t c, std::string_view character, std::string& out) {
  if ((c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F) return;
  bool const space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
                     c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
  out += space ? std::string_view(" ") : character;
}

std::string stripped(std::string const& text, bool left, bool right) {
  std::size_t begin = 0;
  std::size_t end = text.size();
  while (left && begin < end) {
    std::size_t const length = character_length(std::string_view(text).substr(begin));
    if (!is_space(code_point(std::string_view(text).substr(begin, length)))) break;
    begin += length;
  }
  while (right && end > begin) {
    std::size_t const start = previous_character(text, end);
    if (!is_space(code_point(std::string_view(text).substr(start, end - start)))) break;
    end = start;
  }
  return text.substr(begin, end - begin);
}

}  // namespace

std::string replaced(std::string const& text, std::string const& what, std::string const& with) {
  if (what.empty()) return text;
  std::string out;
  std::size_t at = 0;
  for (std::size_t found = text.find(what); found != std::string::npos; found = text.find(what, at)) {
    out.append(text, at, found - at);
    out += with;
    at = found + what.size();
  }
  return out.append(text, at);
}

std::function<std::string(std::string const&, bool&)> replacement(Json const& spec, std::string const& where) {
  auto const& pattern = json_part(spec, "pattern", where);
  auto const content = json_field<std::string>(spec, "content", where);
  // What replaces characters counts as standing where the last of them stood.
  auto const keeps = [content](std::string const& text, std::size_t replaced_at_start) {
    return replaced_at_start == 0 || (!content.empty() && replaced_at_start == character_length(text));
  };
  if (pattern.contains("String"))
    return [what = json_field<std::string>(pattern, "String", where), content, keeps](std::string const& text,
                                                                                      bool& at_start) {
      if (text.starts_with(what) && !keeps(text, what.size())) at_start = false;
      return replaced(text, what, content);
    };
  return [regex = RegexPattern(json_field<std::string>(pattern, "Regex", where)), content, keeps](
             std::string const& text, bool& at_start) {
    if (text.empty()) return text;
    std::vector<RegexPattern::Match> matches;
    regex.matches(text, matches);
    if (!matches.empty() && matches[0].begin == 0 && !keeps(text, matches[0].end)) at_start = false;
    std::string out;
    std::size_t at = 0;
    for (auto const& match : matches) {
      out.append(text, at, match.begin - at);
      out += content;
      at = match.end;
    }
    return out.append(text, at);
  };
}

Normalizer::Normalizer(Json const& spec) {
  if (!spec.is_null()) add(spec);
}

void Normalizer::add(Json const& spec) {
  std::string const where = "normalizer";
  auto const type = json_field<std::string>(spec, "type", where);
  auto const add_form = [&](UnicodeForm form) {
    steps_.push_back(keeping_start([form](std::string const& text) { return unicode_normalized(text, form); }));
  };
  if (type == "Sequence") {
    auto const& steps = json_part(spec, "normalizers", where);
    if (!steps.is_array()) tokenizer_error(where, "field 'normalizers' is not a list");
    for (auto const& step : steps) add(step);
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    add_form({.compose = type.back() == 'C', .compatibility = type[2] == 'K'});
  } else if (type == "Lowercase") {
    steps_.emplace_back(with_each(add_lower_case));
  } else if (type == "StripAccents") {
    steps_.emplace_back(with_each(add_without_marks));
  } else if (type == "Nmt") {
    steps_.emplace_back(with_each(add_nmt));
  } else if (type == "Strip") {
    bool const left = json_field_or(spec, "strip_left", true, where);
    bool const right = json_field_or(spec, "strip_right", true, where);
    steps_.emplace_back([left, right](std::string const& text, bool& at_start) {
      std::string out = stripped(text, left, right);
      if (!text.starts_with(out)) at_start = false;
      return out;
    });
  } else if (type == "Prepend") {
    steps_.push_back(keeping_start([prefix = json_field<std::string>(spec, "prepend", where)](std::string const& text) {
      return text.empty() ? text : prefix + text;
    }));
  } else if (type == "Replace") {
    steps_.push_back(replacement(spec, where));
  } else if (type == "ByteLevel") {
    steps_.push_back(keeping_start([](std::string const& text) { return to_byte_alphabet(text); }));
  } else if (type == "Precompiled") {
    auto const coded = json_field<std::string>(spec, "precompiled_charsmap", where);
    std::string const place = "tokenizer.json: " + where + ": precompiled_charsmap";
    if (coded.empty()) return;
    steps_.push_back(keeping_start([map = Charsmap(decoded_base64(coded, place), place)](std::string const& text) {
      return map.by_graphemes(text);
    }));
  } else {
    tokenizer_error(where, "kind '" + type + "' is not supported");
  }
}

std::string Normalizer::operator()(std::string text) const {
  bool at_start = false;
  return (*this)(std::move(text), at_start);
}

std::string Normalizer::operator()(std::string text, bool& at_start) const {
  for (auto const& step : steps_) text = step(text, at_start);
  return text;
}

}  // namespace expertmesh

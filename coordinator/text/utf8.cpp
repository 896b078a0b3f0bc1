#include "coordinator/text/utf8.h"

#include <utf8proc.h>

#include <cctype>
#include <cstring>

#include "coordinator/text/unicode_category.h"

namespace expertmesh {
namespace {
unsigned char byte_at(std::string_view text, std::size_t i) {
  return static_cast<unsigned char>(text[i]);
}
}  // namespace

std::pair<Utf8Step, std::size_t> utf8_step(std::string_view text) {
  unsigned char const first = byte_at(text, 0);
  if (first < 0x80) return {Utf8Step::character, 1};
  // Bounds of the second byte leave out overlong forms, surrogates and values above U+10FFFF (Unicode table 3-7).
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
  std::size_t length = 0;
  if (first >= 0xC2 && first <= 0xDF)
    length = 2;
  else if (first >= 0xE0 && first <= 0xEF)
    length = 3;
  else if (first >= 0xF0 && first <= 0xF4)
    length = 4;
  else
    return {Utf8Step::invalid, 1};
  if (first == 0xE0) low = 0xA0;
  if (first == 0xED) high = 0x9F;
  if (first == 0xF0) low = 0x90;
  if (first == 0xF4) high = 0x8F;
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Step::incomplete, i};
    if (byte_at(text, i) < low || byte_at(text, i) > high) return {Utf8Step::invalid, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Step::character, length};
}

std::size_t valid_utf8(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    for (std::uint64_t word = 0; at + sizeof(word) <= text.size(); at += sizeof(word)) {  // ASCII by the word
      std::memcpy(&word, text.data() + at, sizeof(word));
      if (word & 0x8080808080808080ULL) break;
    }
    if (at == text.size()) break;
    auto const [step, length] = utf8_step(text.substr(at));
    if (step != Utf8Step::character) break;
    at += length;
  }
  return at;
}

std::string repaired_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    std::size_t const valid = valid_utf8(text);
    out += text.substr(0, valid);
    text.remove_prefix(valid);
    if (text.empty()) break;
    out += kReplacement;
    text.remove_prefix(utf8_step(text).second);
  }
  return out;
}

std::size_t character_length(std::string_view text) {
  return utf8_step(text).second;
}

char32_t code_point(std::string_view character) {
  utf8proc_int32_t c = 0;
  utf8proc_iterate(reinterpret_cast<utf8proc_uint8_t const*>(character.data()),
                   static_cast<utf8proc_ssize_t>(character.size()), &c);
  return static_cast<char32_t>(c);
}

std::string encode_utf8(char32_t c) {
  utf8proc_uint8_t bytes[4];
  auto const length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
  return {reinterpret_cast<char const*>(bytes), static_cast<std::size_t>(length)};
}

bool is_word_character(char32_t c) {
  if (c == 0x200C || c == 0x200D) return true;  // joiners
  // Other_Alphabetic among the symbols: letters in circles and squares.
  if ((c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
      (c >= 0x1F170 && c <= 0x1F189))
    return true;
  switch (general_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

bool is_space(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_numeric(char32_t c) {
  auto const category = general_category(c);
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t c) {
  if (c < 0x80) return c > ' ' && c < 0x7F && !std::isalnum(static_cast<int>(c));
  auto const category = general_category(c);
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

std::size_t previous_character(std::string_view text, std::size_t end) {
  std::size_t begin = end - 1;
  while (begin > 0 && (byte_at(text, begin) & 0xC0) == 0x80) --begin;
  return begin;
}

}  // namespace expertmesh

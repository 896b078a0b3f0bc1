// UTF-8 by hand where libraries want whole strings: stepping, repairing, classes of characters.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace expertmesh {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// What the bytes at the start of `text` are.
enum class Utf8Step : std::uint8_t { character, invalid, incomplete };
// {character, its length}; {invalid, length of the maximal invalid part}; {incomplete, length of what is there}: more
// bytes could complete it. text is not empty.
std::pair<Utf8Step, std::size_t> utf8_step(std::string_view text);

// Bytes at the start of `text` that are valid UTF-8, whole characters.
std::size_t valid_utf8(std::string_view text);

// Every maximal invalid part replaced by one U+FFFD (Unicode 15, section 3.9).
std::string repaired_utf8(std::string_view text);

// Of valid UTF-8:
std::size_t character_length(std::string_view text);  // bytes of the first character
char32_t code_point(std::string_view character);
std::string encode_utf8(char32_t code_point);
bool is_word_character(char32_t c);  // \w of Unicode Technical Standard 18, annex C
bool is_space(char32_t c);           // Unicode White_Space
bool is_numeric(char32_t c);         // categories Nd, Nl, No
bool is_punctuation(char32_t c);     // category P, and what else of ASCII is neither letter, digit, space nor control
// Bounds of the character that ends right before `end`.
std::size_t previous_character(std::string_view text, std::size_t end);

}  // namespace expertmesh

#include "coordinator/text/byte_alphabet.h"

#include <array>
#include <unordered_map>

#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

// Printable Latin-1 bytes stand for themselves, the others for U+0100, U+0101, … in order.
struct Alphabet {
  std::array<std::string, 256> character;
  std::unordered_map<char32_t, char> byte;
  Alphabet() {
    char32_t next = 0x100;
    for (unsigned b = 0; b < 256; ++b) {
      bool const printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE);
      char32_t const c = printable ? static_cast<char32_t>(b) : next++;
      character[b] = encode_utf8(c);
      byte[c] = static_cast<char>(b);
    }
  }
};

Alphabet const& alphabet() {
  static Alphabet const table;
  return table;
}

}  // namespace

std::string to_byte_alphabet(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (char b : bytes) out += alphabet().character[static_cast<unsigned char>(b)];
  return out;
}

std::optional<std::string> from_byte_alphabet(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    std::size_t const length = character_length(text);
    auto const place = alphabet().byte.find(code_point(text.substr(0, length)));
    if (place == alphabet().byte.end()) return std::nullopt;
    out += place->second;
    text.remove_prefix(length);
  }
  return out;
}

}  // namespace expertmesh

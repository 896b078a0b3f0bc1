#include "coordinator/text/charsmap.h"

#include <utf8proc.h>

#include <bit>
#include <cstring>

#include "common/base/error.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

static_assert(std::endian::native == std::endian::little, "the map is little-endian");

// A unit of a Darts double array (Yata 2008).
bool has_leaf(std::uint32_t unit) {
  return unit >> 8 & 1;
}
std::uint32_t value_of(std::uint32_t unit) {
  return unit & 0x7FFFFFFF;
}
std::uint32_t label_of(std::uint32_t unit) {
  return unit & 0x800000FF;
}
std::uint32_t offset_of(std::uint32_t unit) {
  return unit >> 10 << ((unit & 1U << 9) >> 6);
}

}  // namespace

Charsmap::Charsmap(std::string_view bytes, std::string const& where) {
  std::uint32_t size = 0;
  if (bytes.size() >= sizeof(size)) std::memcpy(&size, bytes.data(), sizeof(size));
  if (size == 0 || size % 4 != 0 || size > bytes.size() - sizeof(size))
    throw ModelError(where + ": a malformed charsmap");
  trie_.resize(size / 4);
  std::memcpy(trie_.data(), bytes.data() + sizeof(size), size);
  replacements_ = bytes.substr(sizeof(size) + size);
}

std::optional<Charsmap::Replacement> Charsmap::find(std::string_view text, bool longest) const {
  std::optional<Replacement> found;
  std::size_t node = offset_of(trie_[0]);
  for (std::size_t i = 0; i < text.size() && text[i] != 0; ++i) {
    auto const byte = static_cast<unsigned char>(text[i]);
    node ^= byte;
    if (node >= trie_.size() || label_of(trie_[node]) != byte) break;
    std::uint32_t const unit = trie_[node];
    node ^= offset_of(unit);
    if (node >= trie_.size()) break;
    if (!has_leaf(unit)) continue;
    std::size_t const begin = value_of(trie_[node]);
    if (begin > replacements_.size()) break;
    std::string_view const rest = std::string_view(replacements_).substr(begin);
    found = Replacement{rest.substr(0, rest.find('\0')), i + 1};
    if (!longest) break;
  }
  return found;
}

std::string Charsmap::by_graphemes(std::string const& text) const {
  std::string out;
  out.reserve(text.size());
  std::string_view rest = text;
  while (!rest.empty()) {
    std::size_t cluster = character_length(rest);
    utf8proc_int32_t state = 0;
    auto const point = [](std::string_view from) {
      return static_cast<utf8proc_int32_t>(code_point(from.substr(0, character_length(from))));
    };
    while (cluster < rest.size() &&
           !utf8proc_grapheme_break_stateful(point(rest.substr(previous_character(rest, cluster))),
                                             point(rest.substr(cluster)), &state))
      cluster += character_length(rest.substr(cluster));
    std::string_view part = rest.substr(0, cluster);
    rest.remove_prefix(cluster);
    if (part.size() < 6)
      if (auto const whole = shortest(part)) {
        out += whole->text;
        continue;
      }
    while (!part.empty()) {
      std::string_view const character = part.substr(0, character_length(part));
      auto const one = shortest(character);
      out += one ? one->text : character;
      part.remove_prefix(character.size());
    }
  }
  return repaired_utf8(out);
}

std::string decoded_base64(std::string_view text, std::string const& where) {
  std::string out;
  std::uint32_t bits = 0;
  int count = 0;
  while (text.ends_with('=')) text.remove_suffix(1);
  for (char c : text) {
    int const value = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (value < 0) throw ModelError(where + ": not base64");
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    if ((count += 6) < 8) continue;
    count -= 8;
    out += static_cast<char>(bits >> count);
  }
  return out;
}

}  // namespace expertmesh

// SentencePiece's precompiled normalisation: a map from character sequences to replacements, as a Darts double array.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace expertmesh {

class Charsmap {
 public:
  // The map's bytes: u32 size of the trie in bytes, the trie, the replacements, each ended by NUL. `where` names it in
  // a ModelError for malformed bytes.
  Charsmap(std::string_view bytes, std::string const& where);

  // As tokenizer.json's Precompiled has it: grapheme clusters of fewer than six bytes that start with a sequence of the
  // map are replaced as a whole, else each character on its own.
  [[nodiscard]] std::string by_graphemes(std::string const& text) const;

  struct Replacement {
    std::string_view text;
    std::size_t length;  // of what it replaces
  };
  // Of the shortest or the longest sequence of the map that the text starts with.
  [[nodiscard]] std::optional<Replacement> shortest(std::string_view text) const { return find(text, false); }
  [[nodiscard]] std::optional<Replacement> longest(std::string_view text) const { return find(text, true); }

 private:
  [[nodiscard]] std::optional<Replacement> find(std::string_view text, bool longest) const;
  std::vector<std::uint32_t> trie_;
  std::string replacements_;
};

std::string decoded_base64(std::string_view text, std::string const& where);

}  // namespace expertmesh

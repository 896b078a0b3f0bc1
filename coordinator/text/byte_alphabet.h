// The byte-level BPE alphabet (Radford et al. 2019): every byte as one printable character.
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace expertmesh {

std::string to_byte_alphabet(std::string_view bytes);
// The bytes that these characters stand for; none if one of them is not of the alphabet.
std::optional<std::string> from_byte_alphabet(std::string_view text);

}  // namespace expertmesh

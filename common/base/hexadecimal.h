// Bytes as text.
#pragma once
#include <span>
#include <string>

namespace expertmesh {

inline std::string hexadecimal(std::span<unsigned char const> bytes) {  // two lower-case digits each
  std::string text;
  for (unsigned char const byte : bytes) {
    text.push_back("0123456789abcdef"[byte >> 4]);
    text.push_back("0123456789abcdef"[byte & 15]);
  }
  return text;
}

}  // namespace expertmesh

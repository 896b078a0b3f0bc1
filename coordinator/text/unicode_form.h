// Unicode normalisation forms (UAX 15), in time linear in the text whatever it holds.
#pragma once
#include <string>
#include <string_view>

namespace expertmesh {

struct UnicodeForm {
  bool compose = false;        // NFC, NFKC
  bool compatibility = false;  // NFKC, NFKD
};

std::string unicode_normalized(std::string_view text, UnicodeForm form);

}  // namespace expertmesh

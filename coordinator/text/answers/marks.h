// Looks for marks in text that may not be all there yet. Private to this folder.
#pragma once
#include <algorithm>
#include <string_view>
#include <vector>

namespace expertmesh {

struct FoundMark {
  std::size_t place;  // of the first mark, or of the end of the text that may become one, or the text's size
  std::size_t size;   // of the mark; 0 if it is not there yet
};

inline FoundMark find_mark(std::string_view text, std::vector<std::string_view> const& marks) {
  for (auto const& mark : marks)  // at once: the text may be long
    if (text.starts_with(mark)) return {0, mark.size()};
  FoundMark found{text.size(), 0};
  for (auto const& mark : marks) {
    if (std::size_t const place = text.find(mark); place < found.place) found = {place, mark.size()};
    for (std::size_t n = std::min(mark.size() - 1, text.size()); n > 0 && text.size() - n < found.place; --n)
      if (text.ends_with(mark.substr(0, n))) found = {text.size() - n, 0};
  }
  return found;
}

}  // namespace expertmesh

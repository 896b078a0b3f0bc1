#include "coordinator/text/byte_trie.h"

#include <algorithm>

namespace expertmesh {

ByteTrie::ByteTrie(std::vector<std::pair<std::string, std::uint32_t>> entries) {
  // A node stands for a range of the sorted strings: those that share its path.
  std::ranges::stable_sort(entries, {}, [](auto const& entry) -> std::string const& { return entry.first; });
  struct Part {
    std::size_t begin, end;
  };
  std::vector<Part> parts{{0, entries.size()}};
  nodes_.emplace_back();
  labels_ += '\0';
  std::size_t depth = 0;
  for (std::size_t level = 0; level < nodes_.size(); ++depth) {
    std::size_t const level_end = nodes_.size();
    for (; level < level_end; ++level) {
      auto [at, end] = parts[level];
      for (; at < end && entries[at].first.size() == depth; ++at)
        if (depth > 0) nodes_[level].value = entries[at].second;
      nodes_[level].first_child = static_cast<std::uint32_t>(nodes_.size());
      while (at < end) {
        char const label = entries[at].first[depth];
        std::size_t const begin = at;
        while (at < end && entries[at].first[depth] == label) ++at;
        parts.push_back({begin, at});
        labels_ += label;
        nodes_.emplace_back();
        ++nodes_[level].num_children;
        if (depth == 0) starts_[static_cast<unsigned char>(label)] = true;
      }
    }
  }
}

}  // namespace expertmesh

// Strings by their prefixes: which of them a text starts with.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace expertmesh {

class ByteTrie {
 public:
  // Of equal strings the last one counts; empty ones are in no trie.
  explicit ByteTrie(std::vector<std::pair<std::string, std::uint32_t>> entries);
  ByteTrie() : ByteTrie(std::vector<std::pair<std::string, std::uint32_t>>{}) {}

  // found(length, value) for every string that `text` starts with, the shortest first.
  template <class Found>
  void prefixes(std::string_view text, Found const& found) const {
    std::uint32_t node = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      Node const& from = nodes_[node];
      auto const* const first = labels_.data() + from.first_child;
      auto const* const child = std::char_traits<char>::find(first, from.num_children, text[i]);
      if (!child) return;
      node = from.first_child + static_cast<std::uint32_t>(child - first);
      if (nodes_[node].value != kNone) found(i + 1, nodes_[node].value);
    }
  }

  // Whether some string starts with this byte.
  [[nodiscard]] bool starts(char byte) const { return starts_[static_cast<unsigned char>(byte)]; }

 private:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  struct Node {
    std::uint32_t first_child = 0;  // a node's children lie side by side
    std::uint32_t num_children = 0;
    std::uint32_t value = kNone;
  };
  std::vector<Node> nodes_;  // level by level; 0 is the root
  std::string labels_;       // [nodes] the byte that leads to the node
  std::array<bool, 256> starts_{};
};

}  // namespace expertmesh

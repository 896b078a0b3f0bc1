// Which blocks hold the keys and values of which beginnings of sequences, block by block: a tree, whose nodes are
// looked up by what they continue and by their tokens. Tokens are compared, not only their hash.
//
// A node has a block in each KV group that still holds it, and lives as long as there is one. Numbers of nodes are
// never used again: what continued a node that is gone is not found any more, and goes when its own blocks do.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "common/base/strong_id.h"

namespace expertmesh {

class PrefixCache {
 public:
  using Prefix = std::uint64_t;  // a beginning of a sequence
  // The empty one. Sequences of different kinds share nothing.
  static constexpr Prefix empty(std::uint32_t kind) { return kind; }

  struct Entry {
    Prefix prefix = 0;                           // with this block
    std::span<std::uint32_t const> blocks = {};  // [KV groups], kNoKvBlock: not held; until the next add or drop
  };

  // blocks: [KV groups] of each pool. Allocates all that is ever needed.
  PrefixCache(std::size_t block_tokens, std::span<std::size_t const> blocks);

  // tokens: [block tokens], after those of `before`.
  [[nodiscard]] std::optional<Entry> find(Prefix before, std::span<TokenId const> tokens) const;
  // These blocks hold them now, [KV groups], at least one not kNoKvBlock. Where the cache has another one for a group
  // it keeps that: the entry says which.
  Entry add(Prefix before, std::span<TokenId const> tokens, std::span<std::uint32_t const> blocks);
  // A block that add() took holds something else from now on.
  void drop(std::size_t group, std::uint32_t block);

  [[nodiscard]] std::size_t num_nodes() const { return nodes_.size() - free_.size(); }

 private:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  struct Node {
    Prefix before = 0;
    Prefix prefix = 0;
    std::size_t hash = 0;
    std::uint32_t next = kNone;  // in its bucket
  };
  [[nodiscard]] std::size_t hash_of(Prefix before, std::span<TokenId const> tokens) const;
  [[nodiscard]] std::uint32_t index_of(std::size_t hash, Prefix before, std::span<TokenId const> tokens) const;
  [[nodiscard]] std::span<TokenId> tokens_of(std::uint32_t node);
  [[nodiscard]] std::span<TokenId const> tokens_of(std::uint32_t node) const;
  [[nodiscard]] std::span<std::uint32_t> blocks_of(std::uint32_t node);
  [[nodiscard]] std::span<std::uint32_t const> blocks_of(std::uint32_t node) const;
  void remove(std::uint32_t node);

  std::size_t block_tokens_;
  std::size_t num_groups_;
  std::vector<Node> nodes_;
  std::vector<TokenId> tokens_;                      // [nodes][block tokens]
  std::vector<std::uint32_t> blocks_;                // [nodes][KV groups]
  std::vector<std::uint32_t> free_;                  // nodes, a stack
  std::vector<std::uint32_t> buckets_;               // first node of each, a power of two of them
  std::vector<std::vector<std::uint32_t>> node_of_;  // [KV groups][blocks]
  Prefix last_;
};

}  // namespace expertmesh

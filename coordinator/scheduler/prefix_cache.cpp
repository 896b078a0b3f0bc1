#include "coordinator/scheduler/prefix_cache.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <utility>

#include "common/base/check.h"
#include "common/base/counter_rng.h"
#include "common/kernels/paged_attention.h"

namespace expertmesh {

PrefixCache::PrefixCache(std::size_t block_tokens, std::span<std::size_t const> blocks)
    : block_tokens_(block_tokens),
      num_groups_(blocks.size()),
      nodes_(std::accumulate(blocks.begin(), blocks.end(), std::size_t{0})),
      tokens_(nodes_.size() * block_tokens_),
      blocks_(nodes_.size() * num_groups_, kNoKvBlock),
      buckets_(std::bit_ceil(2 * nodes_.size() + 1), kNone),
      last_(std::numeric_limits<std::uint32_t>::max()) {
  for (std::size_t count : blocks) node_of_.emplace_back(count, kNone);
  free_.reserve(nodes_.size());
  for (std::size_t n = nodes_.size(); n > 0; --n) free_.push_back(static_cast<std::uint32_t>(n - 1));
}

std::size_t PrefixCache::hash_of(Prefix before, std::span<TokenId const> tokens) const {
  std::uint64_t hash = mix64(before);
  for (TokenId token : tokens) hash = mix64(hash ^ static_cast<std::uint32_t>(token));
  return hash;
}

std::span<TokenId> PrefixCache::tokens_of(std::uint32_t node) {
  return std::span(tokens_).subspan(node * block_tokens_, block_tokens_);
}
std::span<TokenId const> PrefixCache::tokens_of(std::uint32_t node) const {
  return std::span(tokens_).subspan(node * block_tokens_, block_tokens_);
}
std::span<std::uint32_t> PrefixCache::blocks_of(std::uint32_t node) {
  return std::span(blocks_).subspan(node * num_groups_, num_groups_);
}
std::span<std::uint32_t const> PrefixCache::blocks_of(std::uint32_t node) const {
  return std::span(blocks_).subspan(node * num_groups_, num_groups_);
}

std::uint32_t PrefixCache::index_of(std::size_t hash, Prefix before, std::span<TokenId const> tokens) const {
  std::uint32_t node = buckets_[hash & (buckets_.size() - 1)];
  while (node != kNone &&
         !(nodes_[node].hash == hash && nodes_[node].before == before && std::ranges::equal(tokens_of(node), tokens)))
    node = nodes_[node].next;
  return node;
}

std::optional<PrefixCache::Entry> PrefixCache::find(Prefix before, std::span<TokenId const> tokens) const {
  std::uint32_t const node = index_of(hash_of(before, tokens), before, tokens);
  if (node == kNone) return std::nullopt;
  return Entry{.prefix = nodes_[node].prefix, .blocks = blocks_of(node)};
}

PrefixCache::Entry PrefixCache::add(Prefix before, std::span<TokenId const> tokens,
                                    std::span<std::uint32_t const> blocks) {
  EM_CHECK(tokens.size() == block_tokens_ && blocks.size() == num_groups_,
           tokens.size() << " tokens in blocks of " << blocks.size() << " groups");
  std::size_t const hash = hash_of(before, tokens);
  std::uint32_t node = index_of(hash, before, tokens);
  if (node == kNone) {
    EM_CHECK(!free_.empty(), "more nodes than blocks");
    node = free_.back();
    free_.pop_back();
    std::uint32_t& bucket = buckets_[hash & (buckets_.size() - 1)];
    nodes_[node] = {.before = before, .prefix = ++last_, .hash = hash, .next = bucket};
    bucket = node;
    std::ranges::copy(tokens, tokens_of(node).begin());
  }
  for (std::size_t g = 0; g < num_groups_; ++g) {
    std::uint32_t& held = blocks_of(node)[g];
    if (held != kNoKvBlock || blocks[g] == kNoKvBlock) continue;
    EM_CHECK(node_of_[g][blocks[g]] == kNone, "block " << blocks[g] << " of group " << g << " holds other tokens");
    held = blocks[g];
    node_of_[g][held] = node;
  }
  return {.prefix = nodes_[node].prefix, .blocks = blocks_of(node)};
}

void PrefixCache::drop(std::size_t group, std::uint32_t block) {
  std::uint32_t const node = std::exchange(node_of_[group][block], kNone);
  EM_CHECK(node != kNone, "block " << block << " of group " << group << " is not in the cache");
  blocks_of(node)[group] = kNoKvBlock;
  if (std::ranges::all_of(blocks_of(node), [](std::uint32_t b) { return b == kNoKvBlock; })) remove(node);
}

void PrefixCache::remove(std::uint32_t node) {
  std::uint32_t* link = &buckets_[nodes_[node].hash & (buckets_.size() - 1)];
  while (*link != node) link = &nodes_[*link].next;
  *link = nodes_[node].next;
  free_.push_back(node);
}

}  // namespace expertmesh

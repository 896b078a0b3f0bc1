// A KV cache that remembers after which tokens a position was computed, and checks that whatever a step's tokens attend
// to is there.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/base/counter_rng.h"
#include "coordinator/scheduler/scheduler.h"

namespace expertmesh::test {

// By the words of KvCacheKind, position by position.
inline bool attends(KvCacheSpec const& group, std::size_t token, std::size_t position) {
  if (position > token) return false;
  if (group.kind == KvCacheKind::window) return position + group.span_tokens > token;
  if (group.kind == KvCacheKind::chunked) return position / group.span_tokens == token / group.span_tokens;
  return true;
}

class KvOracle {
 public:
  KvOracle(std::vector<KvCacheSpec> groups, std::vector<std::size_t> const& blocks) : groups_(std::move(groups)) {
    for (std::size_t g = 0; g < groups_.size(); ++g) slots_.emplace_back(blocks[g] * groups_[g].block_tokens);
  }

  // A step: all its tokens are written, then each looks at what it attends to.
  void run(StepBatch const& batch) {
    contents_.clear();
    for (Sequence const* s : batch.sequences()) {
      auto& contents = contents_.emplace_back();
      std::uint64_t hash = mix64(s->prefix_kind);
      for (TokenId token : s->tokens) contents.push_back(hash = mix64(hash ^ static_cast<std::uint32_t>(token)));
    }
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      TokenPlaces const& places = batch.places()[g];
      for (std::size_t t = 0; t < batch.num_tokens(); ++t)
        slot(g, places, t, places.positions[t]) = content(batch, t, places.positions[t]);
      for (std::size_t t = 0; t < batch.num_tokens(); ++t)
        for (std::uint32_t p = 0; p <= places.positions[t]; ++p) {
          if (!attends(groups_[g], places.positions[t], p)) continue;
          ASSERT_EQ(slot(g, places, t, p), content(batch, t, p))
              << "group " << g << ", token " << places.positions[t] << " attends to " << p;
        }
    }
  }

 private:
  [[nodiscard]] std::uint64_t content(StepBatch const& batch, std::size_t t, std::uint32_t position) const {
    return contents_[batch.places()[0].sequences[t]][position];
  }
  std::uint64_t& slot(std::size_t g, TokenPlaces const& places, std::size_t t, std::uint32_t position) {
    std::size_t const block_tokens = groups_[g].block_tokens;
    std::size_t const entry = places.table_offsets[places.sequences[t]] + position / block_tokens;
    std::size_t const block = entry < places.block_tables.size() ? places.block_tables[entry] : kNoKvBlock;
    std::size_t const place = block * block_tokens + position % block_tokens;
    nowhere_ = 0;  // nothing is so
    return place < slots_[g].size() ? slots_[g][place] : nowhere_;
  }

  std::vector<KvCacheSpec> groups_;
  std::vector<std::vector<std::uint64_t>> slots_;     // [KV groups][blocks * block tokens]
  std::vector<std::vector<std::uint64_t>> contents_;  // [sequences of the step][tokens]: of all up to that one
  std::uint64_t nowhere_ = 0;
};

}  // namespace expertmesh::test

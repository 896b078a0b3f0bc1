#include "common/moe/dispatch_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace expertmesh {
namespace {

struct Batch {
  std::vector<std::uint32_t> experts;  // [T*K]
  std::vector<float> weights;
  std::size_t k;
  Batch(std::vector<std::uint32_t> e, std::size_t per_token)
      : experts(std::move(e)), weights(experts.size(), 0.5F), k(per_token) {}
  [[nodiscard]] RoutingView view() const { return {experts, weights, k}; }
};

// The plan against what its words say, entry by entry.
void check(Batch const& batch, std::size_t num_experts, std::size_t num_workers) {
  LayerPlacement const placement = contiguous_placement(num_experts, num_workers);
  DispatchPlan plan({.max_tokens = 64, .experts_per_token = batch.k, .num_workers = num_workers});
  for (int repeat = 0; repeat < 2; ++repeat)
    plan.build(batch.view(), placement);  // what was there before must not show
  std::vector<int> slots_seen(batch.experts.size(), 0);
  for (std::size_t w = 0; w < num_workers; ++w) {
    auto const rows = plan.rows(w);
    EXPECT_TRUE(std::ranges::is_sorted(rows));
    EXPECT_EQ(std::ranges::adjacent_find(rows), rows.end()) << "a token travels once";
    std::vector<bool> row_used(rows.size(), false);
    for (PlanEntry const& entry : plan.entries(w)) {
      ASSERT_LT(entry.row, rows.size());
      row_used[entry.row] = true;
      ++slots_seen[entry.slot];
      EXPECT_EQ(rows[entry.row], entry.slot / batch.k);
      ExpertRange const share = contiguous_share(num_experts, num_workers, w);
      EXPECT_EQ(share.begin + entry.local_expert, batch.experts[entry.slot]);
      EXPECT_LT(batch.experts[entry.slot], share.end);
    }
    EXPECT_EQ(std::ranges::count(row_used, false), 0) << "no row without use";
    EXPECT_TRUE(std::ranges::is_sorted(plan.entries(w), {}, &PlanEntry::slot));
  }
  EXPECT_EQ(std::ranges::count(slots_seen, 1), static_cast<std::ptrdiff_t>(slots_seen.size()))
      << "every slot exactly once";
}

TEST(DispatchPlan, RandomRouting) {
  std::mt19937 rng(5);
  for (std::size_t num_experts : {1, 3, 8, 20})
    for (std::size_t num_workers : {1, 2, 3, 5, 20, 31})
      for (std::size_t k : {1, 2, 3})
        for (std::size_t tokens : {0, 1, 2, 17, 64}) {
          std::vector<std::uint32_t> experts(tokens * k);
          for (auto& e : experts) e = static_cast<std::uint32_t>(rng() % num_experts);  // duplicates within a token too
          check(Batch(experts, k), num_experts, num_workers);
        }
}

TEST(DispatchPlan, AdversarialRouting) {
  check(Batch(std::vector<std::uint32_t>(40, 7), 1), 8, 3);                 // all to one
  check(Batch({0, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 4, 3, 2, 1, 0}, 8), 8, 3);  // K = E
  check(Batch({2, 2, 2, 2}, 2), 8, 8);                                      // an expert twice in one token
}

TEST(Placement, SharesAreEqualAndWhole) {
  for (std::size_t experts : {1, 7, 8, 128})
    for (std::size_t workers : {1, 2, 3, 5, 9}) {
      std::size_t covered = 0;
      for (std::size_t w = 0; w < workers; ++w) {
        ExpertRange const share = contiguous_share(experts, workers, w);
        EXPECT_EQ(share.begin, covered);
        EXPECT_LE(share.end - share.begin, (experts + workers - 1) / workers);
        covered = share.end;
      }
      EXPECT_EQ(covered, experts);
    }
}

}  // namespace
}  // namespace expertmesh

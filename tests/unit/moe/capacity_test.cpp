#include "common/moe/capacity.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "common/moe/balance.h"
#include "common/moe/dispatch_plan.h"

namespace expertmesh {
namespace {

TEST(Capacity, TheFirstTokensOfASequenceGetIn) {
  std::vector<std::uint32_t> experts = {1, 0, 1, 1, 2, 0, 1};
  std::vector<float> weights = {.1F, .2F, .3F, .4F, .5F, .6F, .7F};
  std::vector<std::uint32_t> counts(3);
  hold_capacity(2, experts, weights, counts);
  EXPECT_EQ(experts, (std::vector<std::uint32_t>{1, 0, 1, kNoExpert, 2, 0, kNoExpert}));
  EXPECT_EQ(weights, (std::vector<float>{.1F, .2F, .3F, 0, .5F, .6F, 0}));
  EXPECT_EQ(counts, (std::vector<std::uint32_t>{2, 2, 1}));
  hold_capacity(0, experts = {2}, weights = {1}, counts);
  EXPECT_EQ(experts.front(), kNoExpert);
}

TEST(Capacity, CountsGoOnFromCallToCall) {
  std::mt19937 rng(3);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::uint32_t> whole(40);
    for (auto& e : whole) e = rng() % 4;
    std::vector<float> weights(40, 1);
    std::vector<std::uint32_t> counts(4);
    auto parts = whole;
    auto part_weights = weights;
    hold_capacity(5, whole, weights, counts);
    counts.assign(4, 0);
    for (std::size_t begin = 0; begin < parts.size();) {
      std::size_t const count = std::min<std::size_t>(1 + rng() % 9, parts.size() - begin);
      hold_capacity(5, std::span(parts).subspan(begin, count), std::span(part_weights).subspan(begin, count), counts);
      begin += count;
    }
    EXPECT_EQ(parts, whole);
    EXPECT_EQ(part_weights, weights);
  }
}

TEST(Capacity, ASlotWithoutAnExpertGoesNowhereAndCountsForNothing) {
  std::vector<std::uint32_t> const experts = {0, kNoExpert, kNoExpert, kNoExpert, 1, 0};
  std::vector<float> const weights = {.5F, 0, 0, 0, .25F, .25F};
  RoutingView const routing{experts, weights, 2};
  DispatchPlan plan({.max_tokens = 3, .experts_per_token = 2, .num_workers = 1});
  plan.build(routing, LayerPlacement({{{.worker = 0, .local_expert = 0}}, {{.worker = 0, .local_expert = 1}}}));
  EXPECT_EQ(plan.rows(0).size(), 2U);  // the middle token stays at home
  ASSERT_EQ(plan.entries(0).size(), 3U);
  EXPECT_EQ(plan.entries(0)[0].slot, 0U);
  EXPECT_EQ(plan.entries(0)[1].slot, 4U);
  EXPECT_EQ(plan.entries(0)[2].slot, 5U);
  BalanceStatistics balance(1, 2);
  balance.add(0, routing);
  EXPECT_EQ(balance.layer(0).load, (std::vector<double>{2, 1}));
  EXPECT_EQ(balance.layer(0).importance, (std::vector<double>{.75, .25}));
}

}  // namespace
}  // namespace expertmesh

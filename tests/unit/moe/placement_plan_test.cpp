#include "common/moe/placement_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

namespace expertmesh {
namespace {

std::size_t moves(LayerShares const& from, LayerShares const& to) {
  std::size_t count = 0;
  for (std::size_t w = 0; w < to.size(); ++w)
    for (std::uint32_t const e : to[w]) count += std::ranges::count(from[w], e) == 0 ? 1 : 0;
  return count;
}

TEST(PlacementPlan, WhatIsBalancedStaysAsItIs) {
  LayerShares const current{{0, 1, 2}, {3, 4, 5}, {6, 7}};
  EXPECT_EQ(plan_layer({.load = std::vector(8, 0.0), .capacity = {1, 1, 1}, .redundant = 0, .current = current}),
            current);
  EXPECT_EQ(plan_layer({.load = std::vector(8, 5.0), .capacity = {1, 1, 1}, .redundant = 0, .current = current}),
            current);
}

TEST(PlacementPlan, TheHotExpertIsLeftAlone) {
  std::vector<double> const load{70, 10, 10, 10};
  auto const shares = plan_layer({.load = load, .capacity = {1, 1}, .redundant = 0, .current = {{0, 1}, {2, 3}}});
  EXPECT_EQ(shares, (LayerShares{{0}, {1, 2, 3}}));
  EXPECT_DOUBLE_EQ(imbalance(load, std::vector{1.0, 1.0}, shares), 1.4);
}

TEST(PlacementPlan, ReplicasGoToTheHottest) {
  std::vector<double> const load{60, 20, 10, 10};
  auto const shares = plan_layer({.load = load, .capacity = {1, 1}, .redundant = 1, .current = {{0, 1}, {2, 3}}});
  EXPECT_TRUE(std::ranges::count(shares[0], 0U) == 1 && std::ranges::count(shares[1], 0U) == 1);
  EXPECT_DOUBLE_EQ(imbalance(load, std::vector{1.0, 1.0}, shares), 1.0);
}

TEST(PlacementPlan, CapacityCounts) {
  std::vector<double> const load(12, 1.0);
  auto const shares = plan_layer({.load = load, .capacity = {2, 1, 0, 1}, .redundant = 0, .current = {}});
  EXPECT_EQ(shares[0].size(), 6U);
  EXPECT_EQ(shares[1].size(), 3U);
  EXPECT_TRUE(shares[2].empty());
  EXPECT_EQ(shares[3].size(), 3U);
}

TEST(PlacementPlan, NobodyGetsMoreThanItHasMemoryFor) {
  std::vector<double> const load(12, 1.0);
  auto const shares =
      plan_layer({.load = load, .capacity = {8, 1, 1}, .room = {4, 12, 12}, .redundant = 0, .current = {}});
  EXPECT_EQ(shares[0].size(), 4U);
  EXPECT_EQ(shares[1].size(), 4U);
  EXPECT_EQ(shares[2].size(), 4U);
}

TEST(PlacementPlan, ExpertsForWhichNobodyHasRoomGetNoHolder) {
  std::vector<double> const load{1, 9, 2, 8, 3, 7};
  auto const shares = plan_layer({.load = load, .capacity = {3, 1}, .room = {2, 1}, .redundant = 2, .current = {}});
  EXPECT_EQ(shares[0].size(), 2U);
  EXPECT_EQ(shares[1].size(), 1U);
  std::set<std::uint32_t> held(shares[0].begin(), shares[0].end());
  held.insert(shares[1].begin(), shares[1].end());
  EXPECT_EQ(held, (std::set<std::uint32_t>{1, 3, 5})) << "the hottest are held";
}

TEST(PlacementPlan, AWorkerThatLeavesGivesItsExpertsAndNothingElseMoves) {
  LayerShares const current{{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}};
  auto const shares =
      plan_layer({.load = std::vector(12, 1.0), .capacity = {1, 0, 1}, .redundant = 0, .current = current});
  EXPECT_TRUE(shares[1].empty());
  EXPECT_EQ(moves(current, shares), 4U);
  EXPECT_EQ(shares[0].size(), 6U);
}

TEST(PlacementPlan, ThereAreAsManyReplicasAsHaveAPlace) {
  for (std::size_t const workers : {1, 2, 3, 5})
    for (std::size_t const experts : {1, 2, 8, 13}) {
      std::size_t const most = most_redundant(experts, workers);
      for (std::size_t const redundant : {most, most + 99}) {
        auto const shares = plan_layer({.load = std::vector(experts, 0.0),
                                        .capacity = std::vector(workers, 1.0),
                                        .redundant = redundant,
                                        .current = {}});
        std::size_t held = 0;
        for (auto const& share : shares) held += share.size();
        EXPECT_EQ(held, experts + most) << experts << " experts, " << workers << " workers, " << redundant;
      }
    }
}

TEST(PlacementPlan, WhateverIsAskedTheRulesHold) {
  std::mt19937 random(21);
  for (int round = 0; round < 3000; ++round) {
    std::size_t const experts = 1 + random() % 40;
    std::size_t const workers = 1 + random() % 8;
    PlacementProblem problem{.load = {}, .capacity = {}, .redundant = random() % 12, .current = {}};
    bool const known = random() % 4 != 0;
    for (std::size_t e = 0; e < experts; ++e)
      problem.load.push_back(known ? static_cast<double>(random() % 1000 * (random() % 5 == 0 ? 20 : 1)) : 0);
    for (std::size_t w = 0; w < workers; ++w)
      problem.capacity.push_back(random() % 5 == 0 ? 0 : static_cast<double>(1 + random() % 3));
    problem.capacity[random() % workers] = 1;
    if (random() % 2 == 0) {
      problem.current.resize(workers);
      for (std::uint32_t e = 0; e < experts; ++e)
        for (auto& held : problem.current)
          if (random() % workers == 0) held.push_back(e);
    }
    auto const shares = plan_layer(problem);
    ASSERT_EQ(shares, plan_layer(problem)) << "not a function of its arguments";
    ASSERT_EQ(shares.size(), workers);
    std::size_t const able =
        static_cast<std::size_t>(std::ranges::count_if(problem.capacity, [](double capacity) { return capacity > 0; }));
    std::size_t total = 0;
    std::set<std::uint32_t> covered;
    for (std::size_t w = 0; w < workers; ++w) {
      ASSERT_TRUE(std::ranges::is_sorted(shares[w]));
      ASSERT_EQ(std::ranges::adjacent_find(shares[w]), shares[w].end());
      ASSERT_TRUE(problem.capacity[w] > 0 || shares[w].empty());
      total += shares[w].size();
      covered.insert(shares[w].begin(), shares[w].end());
    }
    ASSERT_EQ(covered.size(), experts) << "round " << round;
    ASSERT_LE(total, std::min(experts + problem.redundant, experts * able));
    // What it has made it leaves alone, but for small gains.
    if (known && problem.redundant == 0) {
      PlacementProblem again = problem;
      again.current = shares;
      ASSERT_LE(imbalance(problem.load, problem.capacity, plan_layer(again)),
                imbalance(problem.load, problem.capacity, shares) + 0.02);
    }
  }
}

}  // namespace
}  // namespace expertmesh

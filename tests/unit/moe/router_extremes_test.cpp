// Sizes and numbers at the edge: K = E, the largest E, infinities, and contracts between router, plan and statistics.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "common/moe/balance.h"
#include "common/moe/dispatch_plan.h"
#include "common/moe/router.h"
#include "tests/unit/moe/routed.h"

namespace expertmesh {
namespace {

using test::Routed;
using test::routed;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

RouterSpec mixtral(std::size_t experts, std::size_t k) {
  return {.num_experts = experts, .experts_per_token = k};
}

RouterSpec noisy_top_k(std::size_t experts, std::size_t k) {
  return {.num_experts = experts,
          .experts_per_token = k,
          .scoring = RouterScoring::none,
          .normalisation = RouterNormalisation::softmax_of_chosen};
}

TEST(RouterExtremes, AllExpertsOfTheLargestLayerAreASortedPermutation) {
  std::mt19937 rng(1);
  std::vector<float> logits(kMaxExperts);
  for (std::size_t e = 0; e < logits.size(); ++e) logits[e] = static_cast<float>(e % 100) * 0.1F;  // many are equal
  std::ranges::shuffle(logits, rng);
  for (RouterSpec const& spec : {mixtral(kMaxExperts, kMaxExperts), noisy_top_k(kMaxExperts, kMaxExperts)}) {
    Routed const out = routed(spec, logits);
    EXPECT_EQ(std::set(out.experts.begin(), out.experts.end()).size(), kMaxExperts);
    for (std::size_t k = 1; k < kMaxExperts; ++k) {
      float const before = logits[out.experts[k - 1]];
      float const after = logits[out.experts[k]];
      ASSERT_TRUE(before > after || (before == after && out.experts[k - 1] < out.experts[k])) << "slot " << k;
    }
  }
}

TEST(RouterExtremes, OneExpertOfManyHasItsWholeWeightWhereWeightsSumToOne) {
  std::vector<float> const logits{0.5F, -1, 3, 2.5F};
  EXPECT_EQ(routed(mixtral(4, 1), logits).weights, std::vector<float>{1.0F});
  EXPECT_EQ(routed(noisy_top_k(4, 1), logits).weights, std::vector<float>{1.0F});
  RouterSpec raw = mixtral(4, 1);
  raw.normalisation = RouterNormalisation::none;
  EXPECT_LT(routed(raw, logits).weights[0], 0.7F);
}

TEST(RouterExtremes, InfinityTakesAllAndEqualInfinitiesShare) {
  for (RouterSpec const& spec : {mixtral(4, 2), noisy_top_k(4, 2)}) {
    Routed const one = routed(spec, {1, kInf, kNaN, 5});
    EXPECT_EQ(one.experts[0], 1U);
    EXPECT_EQ(one.weights, (std::vector<float>{1, 0}));
    Routed const two = routed(spec, {1, kInf, kNaN, kInf});
    EXPECT_EQ(two.experts, (std::vector<std::uint32_t>{1, 3}));
    EXPECT_EQ(two.weights, (std::vector<float>{0.5F, 0.5F}));
    Routed const none = routed(spec, {kNaN, -kInf, kNaN, -kInf});
    EXPECT_EQ(none.experts, (std::vector<std::uint32_t>{0, 1}));
    EXPECT_EQ(none.weights, (std::vector<float>{0.5F, 0.5F}));
  }
}

TEST(RouterExtremes, AnythingAtAllGivesDistinctExpertsAndWeightsThatSumToOne) {
  std::mt19937 rng(2);
  std::vector<float> const odd{kNaN, kInf, -kInf, 3e38F, -3e38F, 1e-45F, 0, -0.0F, 90, -90};
  for (int round = 0; round < 2000; ++round) {
    std::size_t const experts = 1 + rng() % 12;
    std::size_t const k = 1 + rng() % experts;
    std::vector<float> logits(experts);
    for (float& x : logits) x = odd[rng() % odd.size()];
    for (RouterSpec const& spec : {mixtral(experts, k), noisy_top_k(experts, k)}) {
      Routed const out = routed(spec, logits);
      ASSERT_EQ(std::set(out.experts.begin(), out.experts.end()).size(), k);
      ASSERT_LT(*std::ranges::max_element(out.experts), experts);
      float sum = 0;
      for (float w : out.weights) sum += w;
      ASSERT_NEAR(sum, 1.0F, 1e-5F);
      ASSERT_TRUE(std::ranges::is_sorted(out.weights, std::greater<>()));
    }
  }
}

TEST(RouterExtremes, NoiseThatOverflowsCountsAsInfinite) {
  RouterSpec const spec = noisy_top_k(3, 2);
  std::vector<float> const logits{1, 2, 3};
  std::vector<float> const scale_logits{3e38F, 0, 0};
  std::vector<float> const eps{10, 0, 0};
  Routed out{std::vector<std::uint32_t>(2), std::vector<float>(2)};
  route(spec,
        {.logits = {logits.data(), 1, 3},
         .noise = RouterNoiseInput{.scale_logits = {scale_logits.data(), 1, 3}, .eps = {eps.data(), 1, 3}}},
        out.experts, out.weights);
  EXPECT_EQ(out.experts, (std::vector<std::uint32_t>{0, 2}));
  EXPECT_EQ(out.weights, (std::vector<float>{1, 0}));
}

TEST(RouterExtremes, NoTokensIsNoWork) {
  Routed const out = routed(mixtral(4, 2), {});
  EXPECT_TRUE(out.experts.empty());
}

TEST(RouterExtremesDeathTest, SizesMustAgree) {
  std::vector<float> const logits(8);
  EXPECT_DEATH(routed(mixtral(4, 5), logits), "E 4, columns 4, K 5");
  std::vector<float> const many(kMaxExperts + 1);
  EXPECT_DEATH(routed(mixtral(kMaxExperts + 1, 1), many), "E 1025");
  std::vector<std::uint32_t> const positions{1, 2};
  Matrix<float> eps(1, 4);
  EXPECT_DEATH(router_noise(0, positions, 0, eps.view()), "eps of 1 tokens, 2 positions");
}

TEST(DispatchPlanContract, OfReplicasTheFirstHolderWorks) {
  LayerPlacement const placement(
      {{{.worker = 1, .local_expert = 0}, {.worker = 0, .local_expert = 3}}, {{.worker = 0, .local_expert = 2}}});
  EXPECT_EQ(placement.num_experts(), 2U);
  EXPECT_EQ(placement.holders(0).size(), 2U);
  DispatchPlan plan({.max_tokens = 4, .experts_per_token = 2, .num_workers = 2});
  std::vector<std::uint32_t> const experts{1, 0};
  std::vector<float> const weights{0.6F, 0.4F};
  plan.build({experts, weights, 2}, placement);
  ASSERT_EQ(plan.entries(0).size(), 1U);
  EXPECT_EQ(plan.entries(0)[0].local_expert, 2U);
  EXPECT_EQ(plan.entries(0)[0].slot, 0U);
  ASSERT_EQ(plan.entries(1).size(), 1U);
  EXPECT_EQ(plan.entries(1)[0].local_expert, 0U);
  EXPECT_EQ(plan.entries(1)[0].slot, 1U);
}

TEST(DispatchPlanContractDeathTest, RefusesWhatItHasNoRoomFor) {
  EXPECT_DEATH(LayerPlacement({{{.worker = 0, .local_expert = 0}}, {}}), "expert 1 has no holder");
  LayerPlacement const placement = contiguous_placement(4, 2);
  DispatchPlan plan({.max_tokens = 1, .experts_per_token = 1, .num_workers = 2});
  std::vector<float> const weights(2, 1.0F);
  std::vector<std::uint32_t> const two_tokens{0, 1};
  EXPECT_DEATH(plan.build({two_tokens, weights, 1}, placement), "T 2 of 1");
  std::vector<std::uint32_t> const no_such_expert{4};
  EXPECT_DEATH(plan.build({no_such_expert, std::span(weights).first(1), 1}, placement), "expert 4 of 4");
  DispatchPlan small({.max_tokens = 1, .experts_per_token = 1, .num_workers = 1});
  std::vector<std::uint32_t> const last{3};
  EXPECT_DEATH(small.build({last, std::span(weights).first(1), 1}, placement), "worker 1 of 1");
}

TEST(BalanceStatistics, AddsUpPerLayerAndCountsNoZeroGates) {
  BalanceStatistics balance(2, 3);
  std::vector<std::uint32_t> const experts{0, 2, 2, 1};
  std::vector<float> const weights{0.75F, 0.25F, 1.0F, 0.0F};  // [T=2,K=2]
  for (int step = 0; step < 2; ++step) balance.add(1, {experts, weights, 2});
  EXPECT_EQ(balance.num_layers(), 2U);
  EXPECT_EQ(balance.layer(0).importance, (std::vector<double>{0, 0, 0}));
  EXPECT_EQ(balance.layer(1).importance, (std::vector<double>{1.5, 0, 2.5}));
  EXPECT_EQ(balance.layer(1).load, (std::vector<double>{2, 0, 4}));
  EXPECT_DOUBLE_EQ(squared_cv(balance.layer(1).load), 2.0 / 3.0);  // mean 2, population variance 8/3
}

}  // namespace
}  // namespace expertmesh

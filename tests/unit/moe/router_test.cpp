#include "common/moe/router.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "common/moe/balance.h"
#include "tests/support/goldens_dir.h"
#include "tests/unit/moe/routed.h"

namespace expertmesh {
namespace {

using test::Routed;
using test::routed;
using Json = nlohmann::json;

// The reference model's decisions, with and without noise (Shazeer et al. 2017, eq. 3-7).
TEST(Router, NoisyTopKLikeTheReference) {
  Json const cases = Json::parse(std::ifstream(test::goldens_dir() / "moe/noisy_topk.json"));
  std::size_t noisy = 0;
  for (auto const& c : cases) {
    RouterSpec const spec{.num_experts = c["num_experts"],
                          .experts_per_token = c["experts_per_token"],
                          .scoring = RouterScoring::none,
                          .normalisation = RouterNormalisation::softmax_of_chosen};
    std::size_t const tokens = c["tokens"];
    auto const scale = c["noise_logits"].get<std::vector<float>>();
    auto const eps = c["eps"].get<std::vector<float>>();
    std::optional<RouterNoiseInput> noise;
    if (c["noisy"])
      noise = RouterNoiseInput{.scale_logits = {scale.data(), tokens, spec.num_experts},
                               .eps = {eps.data(), tokens, spec.num_experts}};
    noisy += noise.has_value();
    Routed const out = routed(spec, c["logits"].get<std::vector<float>>(), noise);
    EXPECT_EQ(out.experts, c["experts"].get<std::vector<std::uint32_t>>());
    auto const weights = c["weights"].get<std::vector<float>>();
    for (std::size_t i = 0; i < weights.size(); ++i) EXPECT_NEAR(out.weights[i], weights[i], 2e-5);

    BalanceStatistics balance(1, spec.num_experts);
    balance.add(0, {out.experts, out.weights, spec.experts_per_token});
    auto const importance = c["importance"].get<std::vector<double>>();
    for (std::size_t e = 0; e < importance.size(); ++e)
      EXPECT_NEAR(balance.layer(0).importance[e], importance[e], 1e-4);
    EXPECT_EQ(balance.layer(0).load, c["load"].get<std::vector<double>>());
    EXPECT_NEAR(squared_cv(balance.layer(0).importance), c["importance_cv2"].get<double>(), 1e-4);
  }
  EXPECT_EQ(noisy, cases.size() / 2);
}

// A plain second computation of every combination of scoring and normalisation.
Routed plain(RouterSpec const& spec, std::vector<float> const& logits) {
  Routed out;
  for (std::size_t t = 0; t < logits.size() / spec.num_experts; ++t) {
    std::vector<double> score(logits.begin() + static_cast<std::ptrdiff_t>(t * spec.num_experts),
                              logits.begin() + static_cast<std::ptrdiff_t>((t + 1) * spec.num_experts));
    std::vector<double> const h = score;
    if (spec.scoring == RouterScoring::softmax) {
      double sum = 0;
      for (double& s : score) sum += s = std::exp(s);
      for (double& s : score) s /= sum;
    }
    std::vector<std::uint32_t> order(spec.num_experts);
    std::iota(order.begin(), order.end(), 0U);
    std::ranges::stable_sort(order, [&](auto a, auto b) { return h[a] > h[b]; });
    double sum = 0;
    for (std::size_t k = 0; k < spec.experts_per_token; ++k)
      sum += spec.normalisation == RouterNormalisation::softmax_of_chosen ? std::exp(h[order[k]]) : score[order[k]];
    for (std::size_t k = 0; k < spec.experts_per_token; ++k) {
      out.experts.push_back(order[k]);
      double const own =
          spec.normalisation == RouterNormalisation::softmax_of_chosen ? std::exp(h[order[k]]) : score[order[k]];
      out.weights.push_back(static_cast<float>((spec.normalisation == RouterNormalisation::none ? own : own / sum) *
                                               static_cast<double>(spec.scale)));
    }
  }
  return out;
}

TEST(Router, EveryCombinationAgainstAPlainComputation) {
  std::mt19937 rng(7);
  std::normal_distribution<float> normal;
  for (auto scoring : {RouterScoring::softmax, RouterScoring::none})
    for (auto normalisation :
         {RouterNormalisation::none, RouterNormalisation::sum_to_one, RouterNormalisation::softmax_of_chosen})
      for (std::size_t experts : {1, 2, 3, 8, 20, 128})
        for (std::size_t k : {1, 2, 5, 20})
          for (float scale : {1.0F, 2.5F}) {
            if (k > experts) continue;
            if (scoring == RouterScoring::none && normalisation != RouterNormalisation::softmax_of_chosen) continue;
            if (scoring == RouterScoring::softmax && normalisation == RouterNormalisation::softmax_of_chosen)
              continue;  // no family has it
            RouterSpec const spec{.num_experts = experts,
                                  .experts_per_token = k,
                                  .scoring = scoring,
                                  .normalisation = normalisation,
                                  .scale = scale};
            std::vector<float> logits(experts * 5);
            for (float& x : logits) x = normal(rng);
            Routed const got = routed(spec, logits);
            Routed const expected = plain(spec, logits);
            EXPECT_EQ(got.experts, expected.experts);
            for (std::size_t i = 0; i < got.weights.size(); ++i)
              EXPECT_NEAR(got.weights[i], expected.weights[i], 1e-5F * scale);
          }
}

TEST(Router, EqualScoresGoToTheLowerIndex) {
  RouterSpec const spec{.num_experts = 6, .experts_per_token = 3};
  EXPECT_EQ(routed(spec, {1, 2, 2, 0, 2, 2}).experts, (std::vector<std::uint32_t>{1, 2, 4}));
  EXPECT_EQ(routed(spec, {0, 0, 0, 0, 0, 0}).experts, (std::vector<std::uint32_t>{0, 1, 2}));
}

TEST(Router, NaNAndInfinityChooseSomethingAndNothingBreaks) {
  float const nan = std::numeric_limits<float>::quiet_NaN();
  float const inf = std::numeric_limits<float>::infinity();
  RouterSpec const spec{.num_experts = 4, .experts_per_token = 2};
  EXPECT_EQ(routed(spec, {nan, 1, nan, 2}).experts, (std::vector<std::uint32_t>{3, 1}));
  auto const all = routed(spec, {nan, nan, nan, nan});
  EXPECT_NE(all.experts[0], all.experts[1]);
  for (float w : all.weights) EXPECT_FALSE(std::isnan(w));
  EXPECT_NE(routed(spec, {-inf, 0, -inf, -inf}).experts[0], 0U);
}

TEST(Router, ATokenDoesNotDependOnTheOthers) {
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  RouterSpec const spec{.num_experts = 16, .experts_per_token = 4};
  std::vector<float> logits(16 * 9);
  for (float& x : logits) x = normal(rng);
  Routed const together = routed(spec, logits);
  for (std::size_t t = 0; t < 9; ++t) {
    Routed const alone = routed(spec, {logits.begin() + static_cast<std::ptrdiff_t>(16 * t),
                                       logits.begin() + static_cast<std::ptrdiff_t>(16 * (t + 1))});
    EXPECT_TRUE(std::equal(alone.weights.begin(), alone.weights.end(),
                           together.weights.begin() + static_cast<std::ptrdiff_t>(4 * t)));
  }
}

TEST(RouterNoise, IsAFunctionOfSeedPositionLayerAndExpert) {
  std::vector<std::uint32_t> const positions{5, 9};
  std::vector<std::uint32_t> const alone{9};
  Matrix<float> a(2, 8);
  Matrix<float> b(1, 8);
  Matrix<float> other(1, 8);
  router_noise(1, positions, 3, a.view());
  router_noise(1, alone, 3, b.view());
  router_noise(2, alone, 3, other.view());
  for (std::size_t e = 0; e < 8; ++e) {
    EXPECT_EQ(a.view().row(1)[e], b.view().row(0)[e]);
    EXPECT_NE(a.view().row(0)[e], a.view().row(1)[e]);
    EXPECT_NE(b.view().row(0)[e], other.view().row(0)[e]);
  }
}

TEST(RouterNoise, IsStandardNormal) {
  std::vector<std::uint32_t> positions(4000);
  std::iota(positions.begin(), positions.end(), 0U);
  Matrix<float> eps(positions.size(), 8);
  router_noise(11, positions, 0, eps.view());
  double sum = 0;
  double squares = 0;
  for (std::size_t t = 0; t < positions.size(); ++t)
    for (std::size_t e = 0; e < 8; ++e) {
      sum += static_cast<double>(eps.view().row(t)[e]);
      squares += static_cast<double>(eps.view().row(t)[e]) * static_cast<double>(eps.view().row(t)[e]);
    }
  EXPECT_NEAR(sum / 32000, 0, 0.02);
  EXPECT_NEAR(squares / 32000, 1, 0.03);
}

TEST(Balance, SquaredCoefficientOfVariation) {
  EXPECT_EQ(squared_cv({}), 0);
  EXPECT_EQ(squared_cv(std::vector<double>{0, 0, 0}), 0);
  EXPECT_EQ(squared_cv(std::vector<double>{4, 4}), 0);
  EXPECT_DOUBLE_EQ(squared_cv(std::vector<double>{8, 0, 0, 0, 0, 0, 0, 0}), 7);  // one expert of 8 does everything
}

}  // namespace
}  // namespace expertmesh

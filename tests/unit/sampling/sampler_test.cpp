#include "coordinator/sampling/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "common/tensor/tensor.h"
#include "coordinator/sampling/row_sampler.h"
#include "sampled_after.h"

namespace expertmesh {
namespace {

std::vector<float> random_logits(std::size_t n, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(rng);
  return logits;
}

TEST(Sampler, GreedyIsArgmaxWithTheLowestIdOnTies) {
  Sampler sampler(5);
  SamplingParams const greedy{.temperature = 0};
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 2, 3, 0}, greedy, test::after(0)), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{0, 0, 0, 0, 0}, greedy, test::after(9)), 0);
}

TEST(Sampler, NaNAndInfinityAreSurvived) {
  float const nan = std::numeric_limits<float>::quiet_NaN();
  float const inf = std::numeric_limits<float>::infinity();
  Sampler sampler(3);
  for (float temperature : {0.0F, 1.0F}) {
    SamplingParams const params{.temperature = temperature, .seed = 1};
    EXPECT_EQ(sampler.sample(std::vector<float>{nan, 2, nan}, params, test::after(0)), 1);
    EXPECT_EQ(sampler.sample(std::vector<float>{-inf, -inf, 0}, params, test::after(0)), 2);
    EXPECT_EQ(sampler.sample(std::vector<float>{0, inf, 0}, params, test::after(0)), 1);
    EXPECT_EQ(sampler.sample(std::vector<float>{nan, nan, nan}, params, test::after(0)), 0);
  }
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  std::vector<float> const logits{0.0F, 1.0F, 2.0F, -1.0F};
  Sampler sampler(4);
  std::vector<double> count(4, 0);
  constexpr std::uint32_t kDraws = 20000;
  for (std::uint32_t position = 0; position < kDraws; ++position)
    ++count[sampler.sample(logits, {.temperature = 0.7F, .seed = 42}, test::after(position))];
  double sum = 0;
  for (float x : logits) sum += std::exp(static_cast<double>(x) / 0.7);
  for (std::size_t i = 0; i < 4; ++i)
    EXPECT_NEAR(count[i] / kDraws, std::exp(static_cast<double>(logits[i]) / 0.7) / sum, 0.015);
}

TEST(Sampler, TopPKeepsTheSmallestSufficientSet) {
  // probabilities 0.5, 0.3, 0.2
  std::vector<float> const logits{std::log(0.3F), std::log(0.5F), std::log(0.2F)};
  Sampler sampler(3);
  auto const seen = [&](float top_p) {
    std::vector<bool> ids(3, false);
    for (std::uint32_t position = 0; position < 2000; ++position)
      ids[sampler.sample(logits, {.top_p = top_p, .seed = 3}, test::after(position))] = true;
    return ids;
  };
  EXPECT_EQ(seen(0.4F), (std::vector<bool>{false, true, false}));
  EXPECT_EQ(seen(0.7F), (std::vector<bool>{true, true, false}));
  EXPECT_EQ(seen(1.0F), (std::vector<bool>{true, true, true}));
}

TEST(Sampler, LargeVocabulariesAreSampledWhole) {
  // Flat logits: nearly every token is needed, the first 4950 ids among equals.
  std::vector<float> const logits(5000, 0.0F);
  Sampler sampler(5000);
  TokenId largest = 0;
  for (std::uint32_t position = 0; position < 200; ++position)
    largest = std::max(largest, sampler.sample(logits, {.top_p = 0.99F, .seed = 5}, test::after(position)));
  EXPECT_GT(largest, 3000);
  EXPECT_LT(largest, 4951);
}

TEST(Sampler, ADrawIsAFunctionOfSeedAndPosition) {
  auto const logits = random_logits(300, 1);
  Sampler a(300);
  Sampler b(300);
  bool differs = false;
  for (std::uint32_t position = 0; position < 50; ++position) {
    (void)b.sample(random_logits(300, position), {.seed = 77},
                   test::after(position));  // what b did before must not matter
    EXPECT_EQ(a.sample(logits, {.seed = 9}, test::after(position)),
              b.sample(logits, {.seed = 9}, test::after(position)));
    differs = differs || a.sample(logits, {.seed = 9}, test::after(position)) !=
                             a.sample(logits, {.seed = 10}, test::after(position));
  }
  EXPECT_TRUE(differs);
}

TEST(Sampler, LogprobsAreALogSoftmax) {
  auto const logits = random_logits(100, 2);
  Sampler sampler(100);
  auto const all = sampler.logprobs(logits, 17, 100);
  double sum = 0;
  for (auto const& entry : all.top) sum += std::exp(static_cast<double>(entry.logprob));
  EXPECT_NEAR(sum, 1, 1e-5);
  for (std::size_t i = 1; i < all.top.size(); ++i) EXPECT_GE(all.top[i - 1].logprob, all.top[i].logprob);
  EXPECT_EQ(all.chosen.token, 17);
  EXPECT_NEAR(all.chosen.logprob - all.top[0].logprob, logits[17] - logits[all.top[0].token], 1e-5);
  EXPECT_TRUE(sampler.logprobs(logits, 17, 0).top.empty());
  EXPECT_EQ(sampler.logprobs(std::vector<float>(100, 1.0F), 3, 2).top[1].token, 1) << "lower ids first among equals";
}

// Whatever thread takes a row, and whatever it took before.
TEST(RowSampler, RowsAreSampledAsEachIsAlone) {
  constexpr std::size_t kVocab = 500;
  constexpr std::size_t kMostRows = 9;
  std::vector<SamplingParams> const wishes = {{.temperature = 0},
                                              {.temperature = 0.8F, .seed = 3},
                                              {.temperature = 1.2F, .top_k = 40, .seed = 4},
                                              {.temperature = 0.9F, .top_p = 0.7F, .seed = 5}};
  Matrix<float> logits(kMostRows, kVocab);
  std::vector<RowTask> tasks;
  for (std::size_t i = 0; i < kMostRows; ++i) {
    std::ranges::copy(random_logits(kVocab, static_cast<unsigned>(i)), logits.view().row(i));
    tasks.push_back({.sampling = &wishes[i % wishes.size()], .after = test::after(static_cast<std::uint32_t>(i))});
    if (i % 3 == 0) tasks.back().token_logprobs = 2;
  }
  for (std::size_t const threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    Exec const exec(best_isa(), pool, {});
    RowSampler sampler(kVocab, kMostRows, exec);
    for (std::size_t const count : {kMostRows, std::size_t{0}, std::size_t{1}}) {
      std::vector<RowResult> results(count);
      sampler.start(logits.view().first_rows(count), std::span(tasks).first(count));
      sampler.finish(results);
      for (std::size_t i = 0; i < count; ++i) {
        Sampler alone(kVocab);
        std::span<float const> const row(logits.view().row(i), kVocab);
        TokenId const token = alone.sample(row, *tasks[i].sampling, tasks[i].after);
        EXPECT_EQ(results[i].token, token) << i << " of " << count << ", " << threads << " threads";
        ASSERT_EQ(results[i].token_logprobs.has_value(), tasks[i].token_logprobs.has_value());
        if (results[i].token_logprobs) {
          EXPECT_EQ(results[i].token_logprobs->chosen.logprob, alone.logprobs(row, token, 2).chosen.logprob);
        }
      }
    }
  }
}

}  // namespace
}  // namespace expertmesh

// The sampler against its words taken literally: a full sort, a running sum, and numbers at the edge.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "common/base/counter_rng.h"
#include "coordinator/sampling/sampler.h"
#include "sampled_after.h"

namespace expertmesh {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kMax = std::numeric_limits<float>::max();

// Finite logits only.
TokenId drawn_by_the_book(std::vector<float> const& logits, SamplingParams const& params, std::uint32_t position) {
  double const largest = *std::ranges::max_element(logits);
  std::vector<double> p;
  for (float x : logits) p.push_back(std::exp((x - largest) / params.temperature));
  double const total = std::accumulate(p.begin(), p.end(), 0.0);
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](TokenId a, TokenId b) { return p[a] > p[b]; });
  std::size_t kept = 0;
  double mass = 0;
  while (kept < order.size() && (kept == 0 || static_cast<float>(mass / total) < params.top_p))
    mass += p[order[kept++]];
  order.resize(kept);
  std::ranges::sort(order);
  double const target = mass * random_uniform({.seed = params.seed, .position = position});
  double cumulative = 0;
  for (TokenId id : order)
    if (target < (cumulative += p[id])) return id;
  return order.back();
}

TEST(SamplerOracle, DrawsWhatAFullSortDraws) {
  std::mt19937 rng(4);
  std::normal_distribution<float> normal;
  for (std::size_t vocab : {1, 2, 3, 7, 64, 1000}) {
    Sampler sampler(vocab);
    for (float spread : {0.0F, 0.5F, 3.0F})
      for (bool coarse : {false, true}) {  // coarse: many equal logits
        std::vector<float> logits(vocab);
        for (float& x : logits) x = spread * (coarse ? std::round(normal(rng)) : normal(rng));
        for (float top_p : {1e-30F, 0.1F, 0.5F, 0.9F, 0.999F, 0.9999999F, 1.0F})
          for (float temperature : {0.2F, 1.0F, 5.0F})
            for (std::uint32_t position = 0; position < 20; ++position) {
              SamplingParams const params{.temperature = temperature, .top_p = top_p, .seed = 99};
              ASSERT_EQ(sampler.sample(logits, params, test::after(position)),
                        drawn_by_the_book(logits, params, position))
                  << "V " << vocab << ", spread " << spread << ", top_p " << top_p << ", T " << temperature;
            }
      }
  }
}

std::set<TokenId> seen(Sampler& sampler, std::vector<float> const& logits, SamplingParams params) {
  std::set<TokenId> ids;
  for (std::uint32_t position = 0; position < 1000; ++position)
    ids.insert(sampler.sample(logits, params, test::after(position)));
  return ids;
}

TEST(SamplerOracle, AmongEqualTokensTheNucleusTakesTheLowerIds) {
  Sampler sampler(10);
  std::vector<float> const equal(10, 1.5F);
  for (int tenths = 1; tenths <= 10; ++tenths) {
    std::set<TokenId> const ids = seen(sampler, equal, {.top_p = static_cast<float>(tenths) / 10.0F, .seed = 8});
    EXPECT_EQ(ids.size(), static_cast<std::size_t>(tenths));
    EXPECT_EQ(*ids.rbegin(), tenths - 1);
  }
}

TEST(SamplerOracle, MaskedTokensAreNeverDrawnAtAnyTemperature) {
  Sampler sampler(6);
  std::vector<float> const logits{-kInf, 1, kNaN, 0, -kInf, -kInf};
  for (float temperature : {1e-30F, 1.0F, kMax, kInf})
    for (float top_p : {0.999F, 1.0F})
      for (TokenId id : seen(sampler, logits, {.temperature = temperature, .top_p = top_p, .seed = 2}))
        EXPECT_TRUE(id == 1 || id == 3) << id;
  EXPECT_EQ(seen(sampler, logits, {.temperature = 1e-30F}), std::set<TokenId>{1});
  for (float temperature : {kMax, kInf})
    EXPECT_EQ(seen(sampler, logits, {.temperature = temperature}), (std::set<TokenId>{1, 3}));
  EXPECT_EQ(seen(sampler, {0, kInf, 3, kInf, kMax, kNaN}, {}), (std::set<TokenId>{1, 3, 4}))
      << "all as large as can be";
}

TEST(SamplerOracle, GreedyFindsTheLargestAtEveryPlaceOfEverySize) {
  for (std::size_t vocab = 1; vocab <= 50; ++vocab) {
    Sampler sampler(vocab);
    for (std::size_t place = 0; place < vocab; ++place) {
      std::vector<float> logits(vocab, -2.0F);
      logits[place] = -1.0F;
      if (place > 0) logits[place - 1] = kNaN;
      EXPECT_EQ(sampler.sample(logits, {.temperature = 0}, test::after(0)), static_cast<TokenId>(place));
      logits.back() = logits[place];
      EXPECT_EQ(sampler.sample(logits, {.temperature = 0}, test::after(0)), static_cast<TokenId>(place))
          << "lowest id on ties";
    }
  }
}

TEST(SamplerOracle, LogprobsStayFiniteAndOrdered) {
  Sampler sampler(5);
  std::vector<std::vector<float>> const cases{{kInf, 1, kNaN, kInf, -kInf},
                                              {kNaN, kNaN, kNaN, kNaN, kNaN},
                                              {kMax, -kMax, 0, kMax, 1},
                                              {-kInf, -kInf, -kInf, -kInf, -kInf},
                                              {1000, -1000, 0, 0, 0}};
  for (auto const& logits : cases)
    for (TokenId chosen = 0; chosen < 5; ++chosen) {
      TokenLogprobs const out = sampler.logprobs(logits, chosen, 9);
      ASSERT_EQ(out.top.size(), 5U) << "no more than there are";
      EXPECT_TRUE(std::isfinite(out.chosen.logprob));
      double sum = 0;
      for (std::size_t i = 0; i < 5; ++i) {
        EXPECT_TRUE(std::isfinite(out.top[i].logprob));
        EXPECT_LE(out.top[i].logprob, 0);
        EXPECT_GE(out.top[i == 0 ? 0 : i - 1].logprob, out.top[i].logprob);
        if (out.top[i].token == chosen) {
          EXPECT_EQ(out.top[i].logprob, out.chosen.logprob);
        }
        sum += std::exp(static_cast<double>(out.top[i].logprob));
      }
      EXPECT_NEAR(sum, 1, 1e-6);
    }
}

TEST(SamplerOracle, LogprobsOfPeakedAndFlatRowsAreExact) {
  Sampler sampler(100000);
  std::vector<float> logits(100000, 0.0F);
  EXPECT_FLOAT_EQ(sampler.logprobs(logits, 99999, 1).chosen.logprob, static_cast<float>(-std::log(100000.0)));
  logits[7] = 40;  // 1 - p = 99999 * exp(-40): below fp32's resolution near 1, not below that of its logarithm
  EXPECT_FLOAT_EQ(sampler.logprobs(logits, 7, 1).chosen.logprob,
                  static_cast<float>(-std::log1p(99999 * std::exp(-40.0))));
}

TEST(SamplerOracleDeathTest, SizesMustAgree) {
  Sampler sampler(4);
  EXPECT_DEATH((void)sampler.sample(std::vector<float>(5), {}, test::after(0)), "5 logits for a vocabulary of 4");
  EXPECT_DEATH((void)sampler.logprobs(std::vector<float>(4), 4, 0), "token 4");
  EXPECT_DEATH((void)sampler.logprobs(std::vector<float>(4), -1, 0), "token -1");
}

// ---- bias, penalties, min_tokens, min_p and top_k

// What params ask of the logits, step by step, with a map for counts.
std::vector<float> adjusted_by_the_book(std::vector<float> logits, SamplingParams const& params,
                                        SampledAfter const& after) {
  for (auto const& [token, bias] : params.logit_bias) logits[token] += bias;
  auto const answer = after.tokens.subspan(after.prompt_length);
  if (answer.size() < params.min_tokens)
    for (auto const ids : {after.eos_ids, std::span<TokenId const>(params.stop_token_ids)})
      for (TokenId id : ids) logits[id] = -kInf;
  std::set<TokenId> const seen(after.tokens.begin(), after.tokens.end());
  for (TokenId id : seen)
    logits[id] = logits[id] > 0 ? logits[id] / params.repetition_penalty : logits[id] * params.repetition_penalty;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    auto const count = std::ranges::count(answer, static_cast<TokenId>(id));
    if (count > 0) logits[id] -= params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
  }
  return logits;
}

// min_p, then top_k, of finite and infinite logits; what is cut gets -inf.
std::vector<float> cut_by_the_book(std::vector<float> logits, SamplingParams const& params) {
  double const largest = *std::ranges::max_element(logits);
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    float& x = logits[order[rank]];
    bool const unlikely = std::exp((x - largest) / params.temperature) < static_cast<double>(params.min_p);
    if (unlikely || (params.top_k != 0 && rank >= params.top_k)) x = -kInf;
  }
  return logits;
}

TEST(SamplerOracle, EveryParameterDoesWhatItsDefinitionSays) {
  std::mt19937 rng(11);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 3000; ++round) {
    std::size_t const vocab = 2 + rng() % 40;
    auto const token = [&] { return static_cast<TokenId>(rng() % vocab); };
    auto const maybe = [&](float value) { return rng() % 2 == 0 ? value : 0.0F; };
    Sampler sampler(vocab);
    std::vector<float> logits(vocab);
    for (float& x : logits) x = rng() % 4 == 0 ? std::round(normal(rng)) : 3 * normal(rng);
    std::vector<TokenId> tokens(1 + rng() % 30);
    for (TokenId& t : tokens) t = token();
    std::vector<TokenId> const eos{token()};
    SampledAfter const after{.tokens = tokens, .prompt_length = 1 + rng() % tokens.size(), .eos_ids = eos};
    SamplingParams params{.min_tokens = rng() % 20,
                          .stop_token_ids = {token()},
                          .repetition_penalty = rng() % 2 == 0 ? 1.0F : 1.7F,
                          .frequency_penalty = maybe(0.6F),
                          .presence_penalty = maybe(-0.8F),
                          .temperature = rng() % 5 == 0 ? 0.0F : 0.9F,
                          .min_p = maybe(0.15F),
                          .top_k = rng() % 2 == 0 ? 0 : 1 + rng() % vocab,
                          .seed = rng()};
    if (rng() % 2 == 0) params.logit_bias = {{token(), 1.5F}};
    std::vector<float> const expected = adjusted_by_the_book(logits, params, after);
    TokenId const drawn = sampler.sample(logits, params, after);
    if (std::ranges::max(expected) == -kInf) {
      EXPECT_EQ(drawn, 0);
      continue;
    }
    if (params.temperature == 0) {
      EXPECT_EQ(drawn, std::ranges::max_element(expected) - expected.begin());
      continue;
    }
    std::vector<float> const cut = cut_by_the_book(expected, params);
    EXPECT_EQ(drawn, drawn_by_the_book(cut, params, static_cast<std::uint32_t>(tokens.size()))) << "round " << round;
  }
}

TEST(SamplerOracle, WhatWasCountedForOneSequenceIsForgottenForTheNext) {
  Sampler sampler(4);
  std::vector<float> const logits{1, 1.1F, 0, 0};
  std::vector<TokenId> const ones(9, 1);
  SamplingParams const penalised{.frequency_penalty = 2, .temperature = 0};
  EXPECT_EQ(sampler.sample(logits, penalised, {.tokens = ones, .prompt_length = 1}), 0);
  EXPECT_EQ(sampler.sample(logits, penalised, {.tokens = std::span(ones).first(1), .prompt_length = 1}), 1);
}

TEST(SamplerOracle, EachChoiceHasRandomNumbersOfItsOwn) {
  Sampler sampler(1000);
  std::vector<float> const equal(1000, 0);
  std::set<TokenId> ids;
  for (std::uint32_t choice = 0; choice < 8; ++choice)
    ids.insert(sampler.sample(equal, {.seed = 5, .choice = choice}, test::after(3)));
  EXPECT_GE(ids.size(), 6U);
}

}  // namespace
}  // namespace expertmesh

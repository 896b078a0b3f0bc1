// The device's tokens and log-probabilities against Sampler's, whose own tests say what is right: the same, to the bit.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <sstream>

#include "coordinator/sampling/device_sampler.h"
#include "coordinator/sampling/row_sampler.h"
#include "tests/unit/device/device_rig.h"

namespace expertmesh {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kMax = std::numeric_limits<float>::max();
constexpr std::size_t kCasesOf = test::kFewCases ? 10 : 1;  // one of so many is run

// A row and what is asked of it; owns what its task points to.
struct Row {
  std::vector<float> logits{};
  SamplingParams params{};
  std::vector<TokenId> tokens{0};
  std::size_t prompt_length = 1;
  std::vector<TokenId> eos{};
  std::optional<std::size_t> logprobs{};
  bool of_prompt = false;

  [[nodiscard]] RowTask task() const {
    if (of_prompt) return {.next_of_prompt = tokens.back(), .prompt_logprobs = logprobs};
    return {.sampling = &params,
            .after = {.tokens = tokens, .prompt_length = prompt_length, .eos_ids = eos},
            .token_logprobs = logprobs};
  }
};

bool same(TokenLogprob const& a, TokenLogprob const& b) {
  return a.token == b.token && a.logprob == b.logprob;
}
bool same(std::optional<TokenLogprobs> const& a, std::optional<TokenLogprobs> const& b) {
  if (!a || !b) return !a && !b;
  return same(a->chosen, b->chosen) &&
         std::ranges::equal(a->top, b->top, [](auto const& x, auto const& y) { return same(x, y); });
}
bool same(RowResult const& a, RowResult const& b) {
  return a.token == b.token && same(a.token_logprobs, b.token_logprobs) && same(a.prompt_logprobs, b.prompt_logprobs);
}

std::string describe(Row const& row) {
  SamplingParams const& p = row.params;
  std::ostringstream out;
  out << "V " << row.logits.size() << ", T " << p.temperature << ", min_p " << p.min_p << ", top_k " << p.top_k
      << ", top_p " << p.top_p << ", seed " << p.seed << ", repetition " << p.repetition_penalty << ", frequency "
      << p.frequency_penalty << ", presence " << p.presence_penalty << ", " << p.logit_bias.size() << " biases, "
      << row.tokens.size() << " tokens, logprobs " << (row.logprobs ? std::to_string(*row.logprobs) : "none");
  return out.str();
}

class SamplingDeviceTest : public EachDevice {
 protected:
  std::size_t below(std::size_t n) { return rng_() % n; }
  template <class T>
  T one_of(std::initializer_list<T> list) {
    return list.begin()[below(list.size())];
  }

  std::vector<float> some_logits(std::size_t vocab) {
    std::vector<float> out(vocab);
    auto const fill = [&](auto draw) {
      for (float& x : out) x = draw();
    };
    switch (below(9)) {
      case 0:
        fill([&] { return std::round(2 * normal_(rng_)); });  // many are equal
        break;
      case 1:
        fill([] { return 1.5F; });
        break;
      case 2:
        fill([&] { return one_of({-kInf, kNaN}); });
        out[below(vocab)] = one_of({0.0F, -3.0F, -kMax, kInf});
        break;
      case 3:
        fill([&] { return one_of({kNaN, kInf, -kInf, kMax, -kMax, 1e-45F, -1e-40F, 0.0F, -0.0F, 1.0F}); });
        break;
      case 4:
        fill([&] { return one_of({kNaN, -kInf, 1e-45F, 3e-45F, -1e-40F, 0.0F, -0.0F}); });
        break;
      case 5:
        fill([&] { return 1e4F * normal_(rng_); });
        break;
      case 6:
        fill([&] { return 1 + 1e-6F * normal_(rng_); });
        break;
      default:
        fill([&] { return 3 * normal_(rng_); });
    }
    return out;
  }

  Row some_row(std::size_t vocab) {
    auto const token = [&] { return static_cast<TokenId>(below(vocab)); };
    Row row{.logits = some_logits(vocab)};
    SamplingParams& p = row.params;
    p.seed = rng_();
    p.choice = static_cast<std::uint32_t>(below(3));
    p.temperature = one_of({0.0F, 1e-30F, 0.2F, 0.7F, 1.0F, 1.0F, 1.0F, 5.0F, kMax, kInf});
    if (below(2) == 0) p.min_p = one_of({1e-9F, 0.05F, 0.5F, 1.0F});
    if (below(2) == 0) p.top_k = one_of<std::size_t>({1, 2, 5, vocab / 2, vocab - 1, vocab, vocab + 1});
    if (below(2) == 0) p.top_p = one_of({1e-30F, 0.1F, 0.5F, 0.9F, 0.999F, 0.9999999F});
    row.tokens.resize(1 + below(40));
    for (TokenId& id : row.tokens) id = token();
    row.prompt_length = 1 + below(row.tokens.size());
    if (below(4) == 0) p.repetition_penalty = one_of({0.5F, 1.7F});
    if (below(4) == 0) p.frequency_penalty = one_of({0.6F, -2.0F});
    if (below(4) == 0) p.presence_penalty = one_of({-0.8F, 1.0F});
    if (below(4) == 0)
      for (TokenId id = token(); id < static_cast<TokenId>(vocab); id += 1 + static_cast<TokenId>(below(vocab)))
        p.logit_bias.emplace_back(id, one_of({-100.0F, 0.5F, 100.0F}));
    if (below(4) == 0) {
      p.min_tokens = below(20);
      row.eos = {token(), token()};
      p.stop_token_ids = {token()};
    }
    if (below(20) == 0) p.forced_first = token();
    if (below(3) == 0) row.logprobs = one_of<std::size_t>({0, 1, 5, kMostRanked, vocab < 20 ? vocab + 3 : 7});
    row.of_prompt = below(8) == 0;
    return row;
  }

  // All of them in one call.
  void expect_like_the_host(std::vector<Row> const& rows) {
    std::size_t const vocab = rows[0].logits.size();
    Matrix<float> logits(rows.size(), vocab);
    std::vector<RowTask> tasks;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::ranges::copy(rows[i].logits, logits.view().row(i));
      tasks.push_back(rows[i].task());
    }
    DeviceMatrix const there(*device_, logits.view(), kMargins[below(3)]);
    DeviceSampler sampler(vocab, rows.size(), *device_);
    sampler.start(there.view(), tasks);
    sampler.finish();
    EXPECT_TRUE(there.margins_are_untouched());
    RowSampler host(vocab, rows.size(), host_.exec);
    host.start(logits.view(), tasks);
    std::vector<RowResult> expected(rows.size());
    host.finish(expected);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      ASSERT_TRUE(sampler.takes(i)) << describe(rows[i]);
      RowResult const got = sampler.result(i, tasks[i]);
      ASSERT_TRUE(same(got, expected[i]))
          << describe(rows[i]) << ": token " << got.token.value_or(-1) << " and not " << expected[i].token.value_or(-1);
    }
  }

  std::mt19937_64 rng_{3};
  std::normal_distribution<float> normal_;
};
EM_FOR_EACH_DEVICE(SamplingDeviceTest);

TEST_P(SamplingDeviceTest, GivesTheHostsTokensAndLogprobs) {
  std::pair<std::size_t, std::size_t> const sizes[] = {{1, 100},   {2, 200},    {31, 300},  {32, 300},  {33, 300},
                                                       {301, 300}, {1000, 300}, {1025, 60}, {32000, 24}};
  for (auto const& [vocab, count] : sizes) {
    for (std::size_t done = 0; done < count / kCasesOf;) {
      std::vector<Row> rows;
      for (std::size_t n = 1 + below(12); rows.size() < n;) rows.push_back(some_row(vocab));
      done += rows.size();
      ASSERT_NO_FATAL_FAILURE(expect_like_the_host(rows));
    }
  }
}

// Weights whose sums in order of rank are top_p to the last bit, and its neighbours.
TEST_P(SamplingDeviceTest, CutsAtExactBordersOfTopP) {
  for (std::size_t vocab : {10, 40, 1500}) {
    std::vector<Row> rows;
    for (std::size_t round = 0; round < 20 / kCasesOf; ++round) {
      Row row{.logits = std::vector<float>(vocab)};
      for (float& x : row.logits) x = round % 2 == 0 ? 0.5F : std::round(2 * normal_(rng_));
      TokenWeights const weights{.largest = *std::ranges::max_element(row.logits)};
      std::vector<std::uint64_t> ranks;
      std::uint64_t total = 0;
      for (std::uint32_t id = 0; id < vocab; ++id) {
        ranks.push_back(rank_of(row.logits[id], id));
        total += weights.of(row.logits[id]);
      }
      std::ranges::sort(ranks, std::greater<>{});
      std::uint64_t mass = 0;
      for (std::size_t i = 0, n = 1 + below(vocab); i < n; ++i) mass += weights.of(logit_of_rank(ranks[i]));
      auto const border = static_cast<float>(static_cast<double>(mass) / static_cast<double>(total));
      for (float const top_p : {border, std::nextafter(border, 0.0F), std::nextafter(border, 2.0F)}) {
        row.params.top_p = std::min(top_p, 1.0F);
        row.params.seed = rng_();
        rows.push_back(row);
      }
    }
    ASSERT_NO_FATAL_FAILURE(expect_like_the_host(rows));
  }
}

TEST_P(SamplingDeviceTest, DrawsWhatTheHostDrawsForManySeeds) {
  Row row{.logits = some_logits(2500)};
  for (float& x : row.logits) x = 2 * normal_(rng_);
  for (auto const& params : {SamplingParams{}, SamplingParams{.top_k = 50}, SamplingParams{.top_p = 0.8F}}) {
    std::vector<Row> rows(60 / kCasesOf, row);
    for (Row& r : rows) {
      r.params = params;
      r.params.seed = rng_();
    }
    ASSERT_NO_FATAL_FAILURE(expect_like_the_host(rows));
  }
}

// Long texts with penalties: many adjustments, which rows share the room for.
TEST_P(SamplingDeviceTest, LeavesToTheHostWhatIsRare) {
  constexpr std::size_t kVocab = 6000;
  std::vector<Row> rows(5);
  for (Row& row : rows) {
    row.logits.resize(kVocab);
    for (float& x : row.logits) x = normal_(rng_);
    row.tokens.resize(kVocab);
    std::iota(row.tokens.begin(), row.tokens.end(), 0);
    row.params.seed = rng_();
    row.logprobs = 3;
  }
  for (std::size_t i : {0, 1, 2, 3}) rows[i].params.repetition_penalty = 1.3F;  // all tokens of each
  rows[4].logprobs = kMostRanked + 1;
  std::vector<RowTask> tasks;
  for (Row const& row : rows) tasks.push_back(row.task());
  Matrix<float> logits(rows.size(), kVocab);
  for (std::size_t i = 0; i < rows.size(); ++i) std::ranges::copy(rows[i].logits, logits.view().row(i));
  RowSampler host(kVocab, rows.size(), host_.exec);
  host.start(logits.view(), tasks);
  std::vector<RowResult> expected(rows.size());
  host.finish(expected);

  DeviceMatrix const there(*device_, logits.view());
  DeviceSampler alone(kVocab, rows.size(), *device_);
  alone.start(there.view(), tasks);
  alone.finish();
  for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(alone.takes(i), i < 3) << i;  // 3 times 6000 of 5 times 4096
  DeviceMatrix const again(*device_, logits.view());
  Exec const there_too(Isa::scalar, host_.pool, {}, device_.get());
  RowSampler sampler(kVocab, rows.size(), there_too);
  sampler.start(again.view(), tasks);
  std::vector<RowResult> results(rows.size());
  sampler.finish(results);
  for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_TRUE(same(results[i], expected[i])) << i;

  tasks[4] = {.sampling = &rows[4].params,
              .after = tasks[4].after,
              .token_logprobs = 1,
              .next_of_prompt = 7,
              .prompt_logprobs = 2};
  DeviceSampler both(kVocab, rows.size(), *device_);
  both.start(again.view(), tasks);
  EXPECT_FALSE(both.takes(4));
}

TEST_P(SamplingDeviceTest, RowsThatWantNothingGetNothing) {
  DeviceMatrix const logits(*device_, filled(2, 40, 1.0F).view());
  DeviceSampler sampler(40, 4, *device_);
  std::vector<RowTask> const tasks(2);
  sampler.start(logits.view(), tasks);
  sampler.finish();
  for (std::size_t i : {0, 1}) {
    EXPECT_TRUE(sampler.takes(i));
    EXPECT_TRUE(same(sampler.result(i, tasks[i]), {}));
  }
  sampler.start(logits.view().first_rows(0), {});
  sampler.finish();
}

}  // namespace
}  // namespace expertmesh

// The GPU's router against this processor's, whose tests say what is right.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "common/moe/router.h"
#include "tests/unit/device/device_rig.h"

namespace expertmesh {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Routed {
  std::vector<std::uint32_t> experts;
  std::vector<float> weights;
};

struct Rows {
  std::vector<float> logits;  // [T,E]
  std::vector<float> noise_scale{}, noise_eps{};
  std::vector<float> bias{};
};

MatrixView<float const> rows_of(std::span<float const> numbers, std::size_t cols) {
  return {numbers.data(), numbers.size() / cols, cols};
}

Routed on_host(RouterSpec const& spec, Rows const& in) {
  std::size_t const slots = in.logits.size() / spec.num_experts * spec.experts_per_token;
  Routed out{std::vector<std::uint32_t>(slots), std::vector<float>(slots)};
  RouterInput input{.logits = rows_of(in.logits, spec.num_experts), .selection_bias = in.bias};
  if (!in.noise_eps.empty())
    input.noise = RouterNoiseInput{.scale_logits = rows_of(in.noise_scale, spec.num_experts),
                                   .eps = rows_of(in.noise_eps, spec.num_experts)};
  route(spec, input, out.experts, out.weights);
  return out;
}

Routed on_device(Device& device, RouterSpec const& spec, Rows const& in) {
  std::size_t const slots = in.logits.size() / spec.num_experts * spec.experts_per_token;
  OnDevice<float> const logits(device, in.logits), scale(device, in.noise_scale), eps(device, in.noise_eps);
  OnDevice<float> const bias(device, in.bias);
  OnDevice<std::uint32_t> const experts(device, std::vector<std::uint32_t>(slots));
  OnDevice<float> const weights(device, std::vector<float>(slots));
  device.route(spec,
               {.logits = rows_of(logits.span(), spec.num_experts),
                .noise_scale = rows_of(scale.span(), spec.num_experts),
                .noise_eps = rows_of(eps.span(), spec.num_experts),
                .selection_bias = bias.span()},
               {experts.data(), slots}, {weights.data(), slots});
  return {experts.values(), weights.values()};
}

// A device's exponentials may be off by some units in the last place.
constexpr float kTolerance = 0x1p-20F;

// The same experts in the same slots, weights that are off by a part of theirs.
void expect_like_the_host(Device& device, RouterSpec const& spec, Rows const& in, std::string const& what,
                          float tolerance = kTolerance) {
  Routed const expected = on_host(spec, in);
  Routed const got = on_device(device, spec, in);
  EXPECT_EQ(got.experts, expected.experts) << what;
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < expected.weights.size(); ++i)
    wrong += !(std::abs(got.weights[i] - expected.weights[i]) <= tolerance * std::abs(expected.weights[i]) + 1e-37F);
  EXPECT_EQ(wrong, 0U) << what;
}

struct Kind {
  char const* name;
  RouterSpec spec;  // E and K are filled in
  bool bias = false;
};

std::vector<Kind> kinds(std::size_t experts, std::size_t k) {
  RouterSpec const spec{.num_experts = experts, .experts_per_token = k};
  auto const with = [&](auto change) {
    RouterSpec out = spec;
    change(out);
    return out;
  };
  std::vector<Kind> out{{"softmax, sum to one", spec},
                        {"softmax", with([](RouterSpec& s) { s.normalisation = RouterNormalisation::none; })},
                        {"softmax with bias and floor", with([](RouterSpec& s) { s.sum_floor = 1e-2F; }), true},
                        {"sigmoid with bias", with([](RouterSpec& s) { s.scoring = RouterScoring::sigmoid; }), true},
                        {"scaled sigmoid with bias and offset", with([](RouterSpec& s) {
                           s.scoring = RouterScoring::sigmoid;
                           s.sum_offset = 1e-20F;
                           s.scale = 2.5F;
                         }),
                         true},
                        {"logits, softmax of the chosen", with([](RouterSpec& s) {
                           s.scoring = RouterScoring::none;
                           s.normalisation = RouterNormalisation::softmax_of_chosen;
                         })},
                        {"logits, sigmoid of the chosen", with([](RouterSpec& s) {
                           s.scoring = RouterScoring::none;
                           s.normalisation = RouterNormalisation::sigmoid_of_chosen;
                         })},
                        {"sparse mixer", with([](RouterSpec& s) {
                           s.scoring = RouterScoring::sparsemixer;
                           s.sparse_mixer.jitter = 0.2F;
                         }),
                         true}};  // which it does not look at
  for (std::size_t const count : {2, 4, 8}) {
    if (experts % count != 0) continue;
    for (std::size_t const chosen : {std::size_t{1}, count / 2, count})
      for (GroupScore const score : {GroupScore::largest, GroupScore::sum_of_two_largest})
        if (chosen * (experts / count) >= k)
          for (bool const sigmoid : {false, true})
            out.push_back({"groups", with([&](RouterSpec& s) {
                             s.groups = RouterGroups{.count = count, .chosen = chosen, .score = score};
                             s.scale = 16;
                             s.normalisation = RouterNormalisation::none;
                             if (sigmoid) s.scoring = RouterScoring::sigmoid;
                           }),
                           sigmoid});
  }
  return out;
}

class RouterDeviceTest : public EachDevice {
 protected:
  void compare(std::size_t experts, std::size_t k, Rows const& rows, std::string const& what) {
    for (Kind const& kind : kinds(experts, k)) {
      Rows in = rows;
      if (!kind.bias) in.bias.clear();
      expect_like_the_host(*device_, kind.spec, in,
                           what + ": " + kind.name + ", " + std::to_string(k) + " of " + std::to_string(experts) +
                               (kind.spec.groups ? ", " + std::to_string(kind.spec.groups->chosen) + " groups of " +
                                                       std::to_string(kind.spec.groups->count)
                                                 : ""));
    }
  }
  template <class Draw>
  static std::vector<float> numbers(std::size_t count, Draw const& draw) {
    std::vector<float> out(count);
    for (float& x : out) x = draw();
    return out;
  }

  std::mt19937 rng_{5};
  std::normal_distribution<float> normal_;
};
EM_FOR_EACH_DEVICE(RouterDeviceTest);

constexpr std::pair<std::size_t, std::size_t> kSizes[] = {{1, 1},  {2, 2},   {5, 3},   {8, 2},  {16, 16},
                                                          {60, 4}, {128, 8}, {256, 8}, {33, 33}};

TEST_P(RouterDeviceTest, ChoosesLikeTheHost) {
  for (auto const& [experts, k] : kSizes)
    compare(experts, k,
            {.logits = numbers(3 * experts, [&] { return normal_(rng_); }),
             .bias = numbers(experts, [&] { return 0.1F * normal_(rng_); })},
            "random");
}

TEST_P(RouterDeviceTest, GivesEqualScoresToTheLowerIndex) {
  for (auto const& [experts, k] : kSizes) {
    std::vector<float> const few{1, 2, 3, 0.0F, -0.0F};
    compare(experts, k,
            {.logits = numbers(3 * experts, [&] { return few[rng_() % few.size()]; }),
             .bias = numbers(experts, [&] { return 0.25F * static_cast<float>(rng_() % 2); })},
            "equal");
    compare(experts, k, {.logits = std::vector<float>(experts), .bias = std::vector<float>(experts)}, "zeros");
  }
}

TEST_P(RouterDeviceTest, BringsInfinitiesAndNaNToFiniteNumbers) {
  std::vector<float> const odd{kNaN, kInf, -kInf, 3e38F, -3e38F, 1e-45F, 0, -0.0F, 90, -90};
  for (auto const& [experts, k] : kSizes)
    for (int round = 0; round < 2; ++round)
      compare(experts, k,
              {.logits = numbers(6 * experts, [&] { return odd[rng_() % odd.size()]; }),
               .bias = numbers(experts, [&] { return odd[rng_() % odd.size()]; })},
              "odd");
  for (float const all : {kNaN, kInf, -kInf})
    compare(8, 2, {.logits = std::vector<float>(8, all), .bias = std::vector<float>(8, all)}, "all alike");
}

TEST_P(RouterDeviceTest, AddsNoise) {
  constexpr float kLogitTolerance = 100 * kTolerance;  // logits of up to some tens have such an error before e^h
  for (auto const& [experts, k] : kSizes) {
    auto const draw = [&] { return 3 * normal_(rng_); };
    RouterSpec const spec{.num_experts = experts,
                          .experts_per_token = k,
                          .scoring = RouterScoring::none,
                          .normalisation = RouterNormalisation::softmax_of_chosen};
    Rows in{.logits = numbers(4 * experts, draw),
            .noise_scale = numbers(4 * experts, draw),
            .noise_eps = numbers(4 * experts, draw)};
    expect_like_the_host(*device_, spec, in, "noise", kLogitTolerance);
    in.noise_scale[0] = 3e38F;  // times eps beyond all numbers
    in.noise_eps[0] = 10;
    if (experts > 1) in.noise_scale[1] = 100;  // whose exponential is infinite
    expect_like_the_host(*device_, spec, in, "much noise", kLogitTolerance);
  }
}

TEST_P(RouterDeviceTest, TakesTheLargestLayer) {
  std::vector<float> const logits = numbers(kMaxExperts, [&] { return 0.1F * static_cast<float>(rng_() % 100); });
  for (std::size_t const k : {std::size_t{8}, kMaxExperts})
    for (RouterScoring const scoring : {RouterScoring::softmax, RouterScoring::sigmoid})
      expect_like_the_host(*device_, {.num_experts = kMaxExperts, .experts_per_token = k, .scoring = scoring},
                           {.logits = logits}, "the largest");
}

TEST_P(RouterDeviceTest, NoTokensIsNoWork) {
  device_->route({.num_experts = 4, .experts_per_token = 2}, {.logits = {nullptr, 0, 4}}, {}, {});
}

TEST_P(RouterDeviceTest, ATokensBitsDoNotDependOnTheOthers) {
  std::vector<float> const logits = numbers(std::size_t{9} * 40, [&] { return normal_(rng_); });
  RouterSpec const spec{.num_experts = 40, .experts_per_token = 4};
  Routed const together = on_device(*device_, spec, {.logits = logits});
  for (std::ptrdiff_t t = 0; t < 9; ++t) {
    Routed const alone =
        on_device(*device_, spec, {.logits = {logits.begin() + 40 * t, logits.begin() + 40 * (t + 1)}});
    EXPECT_TRUE(std::equal(alone.weights.begin(), alone.weights.end(), together.weights.begin() + 4 * t));
    EXPECT_TRUE(std::equal(alone.experts.begin(), alone.experts.end(), together.experts.begin() + 4 * t));
  }
}

}  // namespace
}  // namespace expertmesh

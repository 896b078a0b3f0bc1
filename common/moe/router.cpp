#include "common/moe/router.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "common/base/check.h"
#include "common/base/counter_rng.h"

namespace expertmesh {
namespace {

constexpr float kOut = -std::numeric_limits<float>::infinity();  // below every finite score

// log(1 + e^x) without overflow.
float softplus(float x) {
  return x > 20.0F ? x : std::log1p(std::exp(x));
}

// With infinities and NaN brought to finite numbers, a softmax always sums to one.
float finite(float logit) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  return std::isnan(logit) ? -kLargest : std::clamp(logit, -kLargest, kLargest);
}

void softmax_in_place(std::span<float> values) {
  float const largest = *std::ranges::max_element(values);
  float sum = 0;  // at least 1: the term of the largest
  for (float& v : values) {
    v = std::exp(v - largest);
    sum += v;
  }
  for (float& v : values) v /= sum;
}

// The K best of scores by insertion: K is small. Slots in order of falling score; an equal score never passes an
// earlier one, so the lower index stays first.
void select_top_k(std::span<float const> scores, std::span<std::uint32_t> chosen) {
  std::size_t filled = 0;
  for (std::uint32_t e = 0; e < scores.size(); ++e) {
    if (filled == chosen.size() && !(scores[e] > scores[chosen[filled - 1]])) continue;
    std::size_t slot = filled == chosen.size() ? filled - 1 : filled++;
    for (; slot > 0 && scores[e] > scores[chosen[slot - 1]]; --slot) chosen[slot] = chosen[slot - 1];
    chosen[slot] = e;
  }
}

float sigmoid(float x) {
  return 1.0F / (1.0F + std::exp(-x));  // e^-x may be infinite: 0 then
}

float group_score(GroupScore kind, std::span<float const> scores) {
  float first = kOut;
  float second = kOut;
  for (float const s : scores) {
    if (s > first)
      second = std::exchange(first, s);
    else if (s > second)
      second = s;
  }
  return kind == GroupScore::largest ? first : first + second;
}

// Puts the experts of all but the best groups out of the choice.
void keep_best_groups(RouterGroups const& groups, std::span<float> choice) {
  std::size_t const size = choice.size() / groups.count;
  std::array<float, kMaxExperts> scores;        // NOLINT(cppcoreguidelines-pro-type-member-init): filled below
  std::array<std::uint32_t, kMaxExperts> best;  // NOLINT(cppcoreguidelines-pro-type-member-init)
  for (std::size_t g = 0; g < groups.count; ++g) scores[g] = group_score(groups.score, choice.subspan(g * size, size));
  std::array<bool, kMaxExperts> kept{};
  select_top_k(std::span(scores).first(groups.count), std::span(best).first(groups.chosen));
  for (std::size_t i = 0; i < groups.chosen; ++i) kept[best[i]] = true;
  for (std::size_t g = 0; g < groups.count; ++g)
    if (!kept[g]) std::ranges::fill(choice.subspan(g * size, size), kOut);
}

void normalise(RouterSpec const& spec, std::span<float> weights) {
  switch (spec.normalisation) {
    case RouterNormalisation::none:
      break;
    case RouterNormalisation::sum_to_one: {
      float sum = 0;
      for (float w : weights) sum += w;
      float const divisor = std::max(sum + spec.sum_offset, spec.sum_floor);
      if (divisor > 0)  // sigmoids may all be 0
        for (float& w : weights) w /= divisor;
      break;
    }
    case RouterNormalisation::softmax_of_chosen:
      softmax_in_place(weights);
      break;
    case RouterNormalisation::sigmoid_of_chosen:
      for (float& w : weights) w = sigmoid(w);
      break;
  }
}

// The largest of the logits that are left, K times.
void mix_sparsely(SparseMixer const& mixer, std::span<float> h, std::span<std::uint32_t> experts,
                  std::span<float> weights) {
  std::array<bool, kMaxExperts> taken{};
  for (std::size_t k = 0; k < experts.size(); ++k) {
    std::uint32_t best = 0;
    while (taken[best]) ++best;
    for (std::uint32_t e = best; e < h.size(); ++e)
      if (!taken[e] && h[e] > h[best]) best = e;
    float const largest = h[best];
    float sum = 0;
    for (std::size_t e = 0; e < h.size(); ++e)
      if (!taken[e] && !((largest - h[e]) / std::max(std::fabs(h[e]), largest) > 2 * mixer.jitter))
        sum += std::exp(h[e] - largest);
    experts[k] = best;
    weights[k] = 1.0F / sum;  // the sum has the term of the largest, 1
    taken[best] = true;
  }
}

void route_token(RouterSpec const& spec, std::span<float> h, std::span<float const> bias,
                 std::span<std::uint32_t> experts, std::span<float> weights) {
  if (spec.scoring == RouterScoring::sparsemixer) {
    mix_sparsely(spec.sparse_mixer, h, experts, weights);
  } else {
    if (spec.scoring == RouterScoring::softmax) softmax_in_place(h);
    if (spec.scoring == RouterScoring::sigmoid)
      for (float& p : h) p = sigmoid(p);
    std::array<float, kMaxExperts> choice;  // NOLINT(cppcoreguidelines-pro-type-member-init): filled below
    auto const chosen_by = std::span(choice).first(h.size());
    std::ranges::copy(h, choice.begin());
    for (std::size_t e = 0; e < bias.size(); ++e) choice[e] = finite(choice[e] + bias[e]);
    if (spec.groups) keep_best_groups(*spec.groups, chosen_by);
    select_top_k(chosen_by, experts);
    for (std::size_t k = 0; k < experts.size(); ++k) weights[k] = h[experts[k]];
    normalise(spec, weights);
  }
  if (spec.scale != 1.0F)
    for (float& w : weights) w *= spec.scale;
}

}  // namespace

void route(RouterSpec const& spec, RouterInput const& in, std::span<std::uint32_t> experts, std::span<float> weights) {
  std::size_t const num_experts = spec.num_experts;
  std::size_t const k = spec.experts_per_token;
  auto const& [logits, noise, bias] = in;
  EM_CHECK(logits.cols == num_experts && num_experts <= kMaxExperts && k >= 1 && k <= num_experts,
           "E " << num_experts << ", columns " << logits.cols << ", K " << k);
  EM_CHECK(experts.size() == logits.rows * k && weights.size() == experts.size(),
           "T " << logits.rows << ", K " << k << ", slots " << experts.size());
  EM_CHECK(!noise || (noise->eps.rows == logits.rows && noise->eps.cols == num_experts &&
                      noise->scale_logits.rows == logits.rows && noise->scale_logits.cols == num_experts),
           "eps [" << noise->eps.rows << "," << noise->eps.cols << "], noise logits [" << noise->scale_logits.rows
                   << "," << noise->scale_logits.cols << "] for logits [" << logits.rows << "," << num_experts << "]");
  EM_CHECK(bias.empty() || bias.size() == num_experts, "selection bias of " << bias.size());
  EM_CHECK(!spec.groups || (num_experts % spec.groups->count == 0 && spec.groups->chosen <= spec.groups->count &&
                            spec.groups->chosen * (num_experts / spec.groups->count) >= k),
           spec.groups->chosen << " of " << spec.groups->count << " groups, E " << num_experts << ", K " << k);
  std::array<float, kMaxExperts> buffer;  // NOLINT(cppcoreguidelines-pro-type-member-init): filled below
  for (std::size_t t = 0; t < logits.rows; ++t) {
    for (std::size_t e = 0; e < num_experts; ++e) {
      float h = logits.row(t)[e];
      if (noise) h += noise->eps.row(t)[e] * softplus(noise->scale_logits.row(t)[e]);
      buffer[e] = finite(h);
    }
    route_token(spec, std::span(buffer).first(num_experts), bias, experts.subspan(t * k, k), weights.subspan(t * k, k));
  }
}

void router_noise(std::uint64_t seed, std::span<std::uint32_t const> positions, std::uint32_t layer,
                  MatrixView<float> eps) {
  EM_CHECK(eps.rows == positions.size(), "eps of " << eps.rows << " tokens, " << positions.size() << " positions");
  for (std::size_t t = 0; t < positions.size(); ++t)
    for (std::uint32_t e = 0; e < eps.cols; ++e)
      eps.row(t)[e] = static_cast<float>(random_normal(
          {.seed = seed, .position = positions[t], .purpose = RngPurpose::router_noise, .layer = layer, .expert = e}));
}

}  // namespace expertmesh

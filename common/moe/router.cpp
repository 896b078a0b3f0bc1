#include "common/moe/router.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "common/base/check.h"
#include "common/base/counter_rng.h"

namespace expertmesh {
namespace {

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

void route_token(RouterSpec const& spec, std::span<float> h, std::span<std::uint32_t> experts,
                 std::span<float> weights) {
  if (spec.scoring == RouterScoring::softmax) softmax_in_place(h);
  select_top_k(h, experts);
  for (std::size_t k = 0; k < experts.size(); ++k) weights[k] = h[experts[k]];
  switch (spec.normalisation) {
    case RouterNormalisation::none:
      break;
    case RouterNormalisation::sum_to_one: {
      float sum = 0;  // at least 1/E: the largest probability is among them
      for (float w : weights) sum += w;
      for (float& w : weights) w /= sum;
      break;
    }
    case RouterNormalisation::softmax_of_chosen:
      softmax_in_place(weights);
      break;
  }
  if (spec.scale != 1.0F)
    for (float& w : weights) w *= spec.scale;
}

}  // namespace

void route(RouterSpec const& spec, MatrixView<float const> logits, std::optional<RouterNoiseInput> const& noise,
           std::span<std::uint32_t> experts, std::span<float> weights) {
  std::size_t const num_experts = spec.num_experts;
  std::size_t const k = spec.experts_per_token;
  EM_CHECK(logits.cols == num_experts && num_experts <= kMaxExperts && k >= 1 && k <= num_experts,
           "E " << num_experts << ", columns " << logits.cols << ", K " << k);
  EM_CHECK(experts.size() == logits.rows * k && weights.size() == experts.size(),
           "T " << logits.rows << ", K " << k << ", slots " << experts.size());
  EM_CHECK(!noise || (noise->eps.rows == logits.rows && noise->eps.cols == num_experts &&
                      noise->scale_logits.rows == logits.rows && noise->scale_logits.cols == num_experts),
           "eps [" << noise->eps.rows << "," << noise->eps.cols << "], noise logits [" << noise->scale_logits.rows
                   << "," << noise->scale_logits.cols << "] for logits [" << logits.rows << "," << num_experts << "]");
  std::array<float, kMaxExperts> buffer;  // NOLINT(cppcoreguidelines-pro-type-member-init): filled below
  for (std::size_t t = 0; t < logits.rows; ++t) {
    for (std::size_t e = 0; e < num_experts; ++e) {
      float h = logits.row(t)[e];
      if (noise) h += noise->eps.row(t)[e] * softplus(noise->scale_logits.row(t)[e]);
      buffer[e] = finite(h);
    }
    route_token(spec, std::span(buffer).first(num_experts), experts.subspan(t * k, k), weights.subspan(t * k, k));
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

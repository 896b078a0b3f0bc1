#include "coordinator/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "common/base/counter_rng.h"

namespace expertmesh {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

float usable(float logit) {
  return std::isnan(logit) ? kNever : logit;
}

TokenId argmax(std::span<float const> logits) {
  TokenId best = 0;
  for (TokenId id = 1; id < static_cast<TokenId>(logits.size()); ++id)
    if (usable(logits[id]) > usable(logits[best])) best = id;
  return best;
}

}  // namespace

Sampler::Sampler(std::size_t vocab) : order_(vocab), weight_(vocab) {}

void Sampler::rank(std::span<float const> logits, std::size_t count) {
  std::iota(order_.begin(), order_.end(), TokenId{0});
  auto const before = [&](TokenId a, TokenId b) {
    float const x = usable(logits[a]);
    float const y = usable(logits[b]);
    return x > y || (x == y && a < b);
  };
  auto const middle = order_.begin() + static_cast<std::ptrdiff_t>(std::min(count, order_.size()));
  std::partial_sort(order_.begin(), middle, order_.end(), before);
}

TokenId Sampler::sample(std::span<float const> logits, SamplingParams const& params, std::uint32_t position) {
  TokenId const best = argmax(logits);
  if (params.temperature == 0 || !std::isfinite(usable(logits[best]))) return best;

  double total = 0;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    weight_[id] = std::exp((static_cast<double>(usable(logits[id])) - logits[best]) / params.temperature);
    total += weight_[id];
  }
  double const uniform = random_uniform({.seed = params.seed, .position = position, .purpose = RngPurpose::sample});

  // Most draws end within the most probable tokens, so rank these few first and all only if they do not suffice.
  for (std::size_t ranked = std::min<std::size_t>(256, logits.size());; ranked = logits.size()) {
    rank(logits, ranked);
    double nucleus = 0;  // weight of the tokens kept by top_p
    std::size_t kept = 0;
    while (kept < ranked && (kept == 0 || nucleus < static_cast<double>(params.top_p) * total))
      nucleus += weight_[order_[kept++]];
    bool const complete = kept < ranked || ranked == logits.size();
    double const mass = params.top_p >= 1.0F ? total : nucleus;
    if (complete || params.top_p >= 1.0F) {
      double cumulative = 0;
      for (std::size_t i = 0; i < kept; ++i) {
        cumulative += weight_[order_[i]];
        if (uniform * mass < cumulative) return order_[i];
      }
      if (complete) return order_[kept - 1];
    }
  }
}

TokenLogprobs Sampler::logprobs(std::span<float const> logits, TokenId chosen, std::size_t count) {
  float const largest = usable(logits[argmax(logits)]);
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(usable(logit)) - largest);
  double const log_sum = std::log(sum) + largest;
  auto const entry = [&](TokenId id) -> TokenLogprob {
    return {id, static_cast<float>(static_cast<double>(usable(logits[id])) - log_sum)};
  };
  TokenLogprobs result{.chosen = entry(chosen), .top = {}};
  rank(logits, count);
  result.top.reserve(count);
  for (std::size_t i = 0; i < std::min(count, logits.size()); ++i) result.top.push_back(entry(order_[i]));
  return result;
}

}  // namespace expertmesh

#include "coordinator/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>

#include "common/base/check.h"
#include "common/base/counter_rng.h"

namespace expertmesh {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kNever = -std::numeric_limits<float>::infinity();

// NaN as -inf, +inf as the largest finite number.
float usable(float logit) {
  return logit == logit ? std::min(logit, kLargest) : kNever;
}

// First the value without branches, then the place: several times faster than following both.
TokenId argmax(std::span<float const> logits) {
  constexpr std::size_t kLanes = 16;
  float lanes[kLanes];
  std::ranges::fill(lanes, kNever);
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes)
    for (std::size_t lane = 0; lane < kLanes; ++lane)
      lanes[lane] = logits[i + lane] > lanes[lane] ? logits[i + lane] : lanes[lane];
  for (; i < logits.size(); ++i) lanes[0] = logits[i] > lanes[0] ? logits[i] : lanes[0];
  float const largest = *std::ranges::max_element(lanes);
  if (largest == kNever) return 0;
  return static_cast<TokenId>(std::ranges::find_if(logits, [&](float v) { return usable(v) >= usable(largest); }) -
                              logits.begin());
}

// By falling value, the lower id first among equals: a strict total order.
auto by_rank(auto const& value) {
  return [&value](TokenId a, TokenId b) {
    auto const x = value(a);
    auto const y = value(b);
    return x > y || (x == y && a < b);
  };
}

}  // namespace

Sampler::Sampler(std::size_t vocab) : order_(vocab), weight_(vocab), adjusted_(vocab), counts_(vocab) {
  EM_CHECK(vocab > 0, "an empty vocabulary");
}

Sampler::Nucleus Sampler::nucleus(double total, float top_p) {
  auto const weight = [&](TokenId id) { return weight_[static_cast<std::size_t>(id)]; };
  auto const before = by_rank(weight);
  // In fp32, top_p's own precision: ten equal tokens reach 0.1 with one.
  auto const reached = [&](double mass) { return static_cast<float>(mass / total) >= top_p; };

  // All tokens below this weight together have less than 1 - top_p: the set lies within the others.
  double const floor = (1.0 - static_cast<double>(top_p)) * total / static_cast<double>(weight_.size());
  auto end = order_.begin();
  for (std::size_t id = 0; id < weight_.size(); ++id)
    if (weight_[id] > 0 && weight_[id] >= floor) *end++ = static_cast<TokenId>(id);

  // Halve [begin, end), which holds the last token of the set, until it is alone: O(V) as the halves shrink.
  auto begin = order_.begin();
  double mass = 0;  // of what comes before `begin`
  while (end - begin > 1) {
    auto const middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, before);
    double const upper = std::transform_reduce(begin, middle, 0.0, std::plus<>{}, weight);
    if (reached(mass + upper)) {
      end = middle;
    } else {
      mass += upper;
      begin = middle;
    }
  }
  return {.last = *begin, .mass = mass + weight(*begin)};
}

std::span<float const> Sampler::adjusted(std::span<float const> logits, SamplingParams const& params,
                                         SampledAfter const& after) {
  bool const too_short = after.tokens.size() - after.prompt_length < params.min_tokens;
  bool const penalised =
      params.repetition_penalty != 1.0F || params.frequency_penalty != 0.0F || params.presence_penalty != 0.0F;
  if (params.logit_bias.empty() && !too_short && !penalised) return logits;
  std::ranges::copy(logits, adjusted_.begin());
  auto const logit = [&](TokenId id) -> float& { return adjusted_.at(static_cast<std::size_t>(id)); };
  for (auto const& [token, bias] : params.logit_bias) logit(token) += bias;
  if (too_short)
    for (auto const ids : {after.eos_ids, std::span<TokenId const>(params.stop_token_ids)})
      for (TokenId id : ids) logit(id) = kNever;
  if (penalised) penalise(params, after);
  return adjusted_;
}

void Sampler::penalise(SamplingParams const& params, SampledAfter const& after) {
  auto const index = [](TokenId id) { return static_cast<std::size_t>(id); };
  // Each token seen, once: the first visit takes its count away.
  auto const each_once = [&](std::span<TokenId const> tokens, auto action) {
    for (TokenId id : tokens) ++counts_.at(index(id));
    for (TokenId id : tokens)
      if (auto const count = std::exchange(counts_[index(id)], 0)) action(adjusted_[index(id)], count);
  };
  if (params.repetition_penalty != 1.0F)
    each_once(after.tokens, [&](float& logit, std::uint32_t) {
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    });
  each_once(after.tokens.subspan(after.prompt_length), [&](float& logit, std::uint32_t count) {
    logit -= params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
  });
}

// Sets all weights but the `count` best to 0; returns the sum of those.
double Sampler::keep_best(std::size_t count) {
  auto const weight = [&](TokenId id) { return weight_[static_cast<std::size_t>(id)]; };
  auto end = order_.begin();
  for (std::size_t id = 0; id < weight_.size(); ++id)
    if (weight_[id] > 0) *end++ = static_cast<TokenId>(id);
  if (static_cast<std::size_t>(end - order_.begin()) > count) {
    auto const cut = order_.begin() + static_cast<std::ptrdiff_t>(count);
    std::nth_element(order_.begin(), cut, end, by_rank(weight));
    std::for_each(cut, end, [&](TokenId id) { weight_[static_cast<std::size_t>(id)] = 0; });
  }
  return std::accumulate(weight_.begin(), weight_.end(), 0.0);
}

TokenId Sampler::sample(std::span<float const> raw, SamplingParams const& params, SampledAfter const& after) {
  EM_CHECK(raw.size() == weight_.size(), raw.size() << " logits for a vocabulary of " << weight_.size());
  if (params.forced_first && after.tokens.size() == after.prompt_length) return *params.forced_first;
  std::span<float const> const logits = adjusted(raw, params, after);
  TokenId const best = argmax(logits);
  double const largest = usable(logits[static_cast<std::size_t>(best)]);
  if (params.temperature == 0 || largest == kNever) return best;

  double total = 0;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    float const logit = usable(logits[id]);
    weight_[id] = logit == kNever ? 0 : std::exp((logit - largest) / params.temperature);
    if (weight_[id] < static_cast<double>(params.min_p)) weight_[id] = 0;  // the best weighs 1
    total += weight_[id];
  }
  if (params.top_k != 0 && params.top_k < logits.size()) total = keep_best(params.top_k);
  bool const cut = params.top_p < 1.0F;
  Nucleus const kept = cut ? nucleus(total, params.top_p) : Nucleus{.last = best, .mass = total};
  double const least = weight_[static_cast<std::size_t>(kept.last)];
  auto const is_kept = [&](std::size_t id) {
    return !cut || weight_[id] > least || (weight_[id] == least && static_cast<TokenId>(id) <= kept.last);
  };
  double const target = kept.mass * random_uniform({.seed = params.seed,
                                                    .choice = params.choice,
                                                    .position = static_cast<std::uint32_t>(after.tokens.size()),
                                                    .purpose = RngPurpose::sample});
  double cumulative = 0;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    if (!is_kept(id)) continue;
    cumulative += weight_[id];
    if (target < cumulative) return static_cast<TokenId>(id);
  }
  return best;  // the sum in order of id was rounded below the target
}

TokenLogprobs Sampler::logprobs(std::span<float const> logits, TokenId chosen, std::size_t count) {
  EM_CHECK(logits.size() == order_.size() && static_cast<std::size_t>(chosen) < logits.size(),
           "token " << chosen << ", " << logits.size() << " logits for a vocabulary of " << order_.size());
  // Finite, so that every difference is: -inf and NaN as the smallest number.
  auto const logit = [&](TokenId id) { return std::max(usable(logits[static_cast<std::size_t>(id)]), -kLargest); };
  TokenId const best = argmax(logits);
  double const largest = logit(best);
  double others = 0;  // without the best token's 1, in which small terms would be lost
  for (TokenId id = 0; id < static_cast<TokenId>(logits.size()); ++id)
    if (id != best) others += std::exp(logit(id) - largest);
  double const log_sum = std::log1p(others);
  auto const entry = [&](TokenId id) -> TokenLogprob {
    return {id, static_cast<float>(std::max(logit(id) - largest - log_sum, static_cast<double>(-kLargest)))};
  };
  TokenLogprobs result{.chosen = entry(chosen), .top = {}};
  count = std::min(count, logits.size());
  if (count == 0) return result;
  std::iota(order_.begin(), order_.end(), TokenId{0});
  auto const middle = order_.begin() + static_cast<std::ptrdiff_t>(count);
  std::partial_sort(order_.begin(), middle, order_.end(), by_rank(logit));
  result.top.reserve(count);
  std::transform(order_.begin(), middle, std::back_inserter(result.top), entry);
  return result;
}

}  // namespace expertmesh

#include "coordinator/sampling/sampler.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "common/base/check.h"
#include "common/base/counter_rng.h"
#include "coordinator/sampling/log_softmax.h"

namespace expertmesh {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// Not a NaN, unless there is nothing else: then kNever.
float largest_of(std::span<float const> logits) {
  constexpr std::size_t kLanes = 16;
  float lanes[kLanes];
  std::ranges::fill(lanes, kNever);
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes)
    for (std::size_t lane = 0; lane < kLanes; ++lane)
      lanes[lane] = logits[i + lane] > lanes[lane] ? logits[i + lane] : lanes[lane];
  for (; i < logits.size(); ++i) lanes[0] = logits[i] > lanes[0] ? logits[i] : lanes[0];
  return *std::ranges::max_element(lanes);
}

// First the value of stretch after stretch without branches, then the place in the first that has the largest: several
// times faster than following both.
TokenId argmax(std::span<float const> logits) {
  constexpr std::size_t kStretch = 512;
  float largest = kNever;
  std::size_t where = 0;
  for (std::size_t begin = 0; begin < logits.size(); begin += kStretch) {
    float const of_stretch = usable_logit(largest_of(logits.subspan(begin, std::min(kStretch, logits.size() - begin))));
    if (of_stretch > largest) {
      largest = of_stretch;
      where = begin;
    }
  }
  if (largest == kNever) return 0;
  auto const rest = logits.subspan(where);
  return static_cast<TokenId>(std::ranges::find_if(rest, [&](float v) { return usable_logit(v) >= largest; }) -
                              logits.begin());
}

}  // namespace

std::optional<TokenId> forced_token(SamplingParams const& params, SampledAfter const& after) {
  return after.tokens.size() == after.prompt_length ? params.forced_first : std::nullopt;
}
double uniform_for(SamplingParams const& params, SampledAfter const& after) {
  return random_uniform({.seed = params.seed,
                         .choice = params.choice,
                         .position = static_cast<std::uint32_t>(after.tokens.size()),
                         .purpose = RngPurpose::sample});
}
double inverse_temperature(SamplingParams const& params) {
  return 1.0 / static_cast<double>(params.temperature);
}
bool is_number(float logit) {
  return logit > kNever;
}

Sampler::Sampler(std::size_t vocab) : ranks_(vocab), weight_(vocab), adjusted_(vocab), adjustments_(vocab) {
  EM_CHECK(vocab > 0 && vocab <= kMostTokens, "a vocabulary of " << vocab);
}

std::span<float const> Sampler::adjusted(std::span<float const> logits, SamplingParams const& params,
                                         SampledAfter const& after) {
  auto const adjustments = adjustments_.of(params, after);
  if (adjustments.empty()) return logits;
  std::ranges::copy(logits, adjusted_.begin());
  for (TokenAdjustment const& a : adjustments)
    adjusted_[a.token] = adjusted_logit(adjusted_[a.token], a, params.repetition_penalty);
  return adjusted_;
}

std::uint64_t Sampler::last_of_best(std::span<float const> logits, std::size_t count) {
  for (std::uint32_t id = 0; id < logits.size(); ++id) ranks_[id] = rank_of(usable_logit(logits[id]), id);
  auto const last = ranks_.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(ranks_.begin(), last, ranks_.end(), std::greater<>{});
  return *last;
}

std::uint64_t Sampler::last_of_nucleus(std::span<float const> logits, TokenWeights const& weights, float top_p,
                                       std::uint64_t last, std::uint64_t total) {
  auto const sum = [&](auto begin, auto end) {
    return std::transform_reduce(begin, end, std::uint64_t{0}, std::plus<>{},
                                 [&](std::uint64_t rank) { return weight_[id_of_rank(rank)]; });
  };
  double const least = log_of_surely_cut(total, top_p, weight_.size());
  auto end = ranks_.begin();
  for (std::uint32_t id = 0; id < logits.size(); ++id) {
    float const logit = usable_logit(logits[id]);
    std::uint64_t const rank = rank_of(logit, id);
    if (rank >= last && weights.log_of(logit) >= least) *end++ = rank;
  }
  // Halve [begin, end), which holds the last token of the set, until it is alone: O(V) as the halves shrink.
  auto begin = ranks_.begin();
  std::uint64_t before = 0;  // the weight of what comes before `begin`
  while (end - begin > 1) {
    auto const middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, std::greater<>{});
    std::uint64_t const upper = sum(begin, middle);
    if (reaches(before + upper, total, top_p)) {
      end = middle;
    } else {
      before += upper;
      begin = middle;
    }
  }
  return *begin;
}

TokenId Sampler::sample(std::span<float const> raw, SamplingParams const& params, SampledAfter const& after) {
  EM_CHECK(raw.size() == weight_.size(), raw.size() << " logits for a vocabulary of " << weight_.size());
  if (auto const forced = forced_token(params, after)) return *forced;
  std::span<float const> const logits = adjusted(raw, params, after);
  TokenId const best = argmax(logits);
  float const largest = usable_logit(logits[static_cast<std::size_t>(best)]);
  if (params.temperature == 0 || largest == kNever) return best;

  TokenWeights const weights{
      .largest = largest, .inverse_temperature = inverse_temperature(params), .min_p = params.min_p};
  std::uint64_t mass = 0;  // of all that are kept
  for (std::size_t id = 0; id < logits.size(); ++id) mass += weight_[id] = weights.of(usable_logit(logits[id]));
  std::uint64_t last = 0;
  auto const cut = [&](std::uint64_t rank) {
    last = rank;
    mass = 0;
    for (std::uint32_t id = 0; id < logits.size(); ++id) {
      if (rank_of(usable_logit(logits[id]), id) < last) weight_[id] = 0;
      mass += weight_[id];
    }
  };
  if (params.top_k != 0 && params.top_k < logits.size()) cut(last_of_best(logits, params.top_k));
  if (params.top_p < 1.0F) cut(last_of_nucleus(logits, weights, params.top_p, last, mass));
  std::uint64_t const target = drawn_weight(mass, uniform_for(params, after));
  std::uint64_t cumulative = 0;
  for (std::size_t id = 0; id < logits.size(); ++id)
    if (cumulative += weight_[id]; cumulative > target) return static_cast<TokenId>(id);
  EM_CHECK(false, "tokens of weight " << cumulative << ", and " << target << " of them drawn");
}

TokenLogprobs Sampler::logprobs(std::span<float const> logits, TokenId chosen, std::size_t count) {
  EM_CHECK(logits.size() == ranks_.size() && static_cast<std::size_t>(chosen) < logits.size(),
           "token " << chosen << ", " << logits.size() << " logits for a vocabulary of " << ranks_.size());
  float const largest = LogSoftmax::finite_logit(logits[static_cast<std::size_t>(argmax(logits))]);
  FineWeight sum;
  for (float const logit : logits) {
    FineWeight const weight = fine_weight(LogSoftmax::finite_logit(logit), largest);
    sum.high += weight.high;
    sum.low += weight.low;
  }
  LogSoftmax const softmax(largest, sum);
  auto const entry = [&](std::size_t id) -> TokenLogprob { return {static_cast<TokenId>(id), softmax.of(logits[id])}; };
  TokenLogprobs result{.chosen = entry(static_cast<std::size_t>(chosen)), .top = {}};
  count = std::min(count, logits.size());
  if (count == 0) return result;
  for (std::uint32_t id = 0; id < logits.size(); ++id) ranks_[id] = rank_of(LogSoftmax::finite_logit(logits[id]), id);
  auto const middle = ranks_.begin() + static_cast<std::ptrdiff_t>(count);
  std::partial_sort(ranks_.begin(), middle, ranks_.end(), std::greater<>{});
  result.top.reserve(count);
  for (auto rank = ranks_.begin(); rank != middle; ++rank) result.top.push_back(entry(id_of_rank(*rank)));
  return result;
}

}  // namespace expertmesh

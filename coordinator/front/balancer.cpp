#include "coordinator/front/balancer.h"

#include <tuple>

#include "common/base/check.h"

namespace expertmesh {

Balancer::Balancer(BalancerOptions options) : options_(options), loads_(options.num_backends) {}

std::optional<Balancer::Choice> Balancer::choose(PromptSummary const& prompt, std::vector<bool> const& eligible) {
  EM_CHECK(eligible.size() == loads_.size(), "one for each backend");
  std::optional<std::size_t> least;
  auto const key = [this](std::size_t b) { return std::tuple(loads_[b].tokens, loads_[b].last_chosen); };
  for (std::size_t b = 0; b < loads_.size(); ++b)
    if (eligible[b] && (!least || key(b) < key(*least))) least = b;
  if (!least) return std::nullopt;
  Choice const choice = longest_known(prompt, eligible, loads_[*least].tokens + options_.margin_tokens)
                            .value_or(Choice{.backend = *least, .known_blocks = 0});
  loads_[choice.backend].tokens += prompt.tokens;
  loads_[choice.backend].last_chosen = ++num_choices_;
  remember(prompt, choice.backend);
  return choice;
}

std::optional<Balancer::Choice> Balancer::longest_known(PromptSummary const& prompt, std::vector<bool> const& eligible,
                                                        std::size_t most_tokens) const {
  for (std::size_t blocks = prompt.prefixes.size(); blocks > 0; --blocks) {
    auto const known = places_.find(prompt.prefixes[blocks - 1]);
    if (known == places_.end()) continue;
    std::size_t const backend = known->second->backend;
    if (eligible[backend] && loads_[backend].tokens <= most_tokens)
      return Choice{.backend = backend, .known_blocks = blocks};
  }
  return std::nullopt;
}

// The shortest last: it is what most others begin with.
void Balancer::remember(PromptSummary const& prompt, std::size_t backend) {
  for (std::size_t blocks = prompt.prefixes.size(); blocks > 0; --blocks) {
    std::uint64_t const hash = prompt.prefixes[blocks - 1];
    auto const known = places_.find(hash);
    if (known != places_.end()) {
      known->second->backend = backend;
      recent_.splice(recent_.begin(), recent_, known->second);
      continue;
    }
    recent_.push_front({.hash = hash, .backend = backend});
    places_[hash] = recent_.begin();
  }
  for (; recent_.size() > options_.max_prefixes; recent_.pop_back()) places_.erase(recent_.back().hash);
}

void Balancer::finish(std::size_t backend, std::size_t tokens) {
  EM_CHECK(loads_.at(backend).tokens >= tokens, "finished twice");
  loads_[backend].tokens -= tokens;
}

void Balancer::forget(std::size_t backend) {
  for (auto place = recent_.begin(); place != recent_.end();) {
    if (place->backend != backend) {
      ++place;
      continue;
    }
    places_.erase(place->hash);
    place = recent_.erase(place);
  }
}

}  // namespace expertmesh

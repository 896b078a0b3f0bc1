#include "coordinator/scheduler/prefill_budget.h"

#include <algorithm>
#include <limits>

namespace expertmesh {
namespace {

constexpr double kNewShare = 0.2;  // of the latest step in the running mean

void learn(double& mean, double value) {
  mean = mean == 0 ? value : (1 - kNewShare) * mean + kNewShare * value;
}

}  // namespace

std::size_t PrefillBudget::tokens() const {
  if (step_seconds_ == 0) return std::numeric_limits<std::size_t>::max();
  if (seconds_a_token_ == 0) return kLeastTokens;
  double const tokens = (step_seconds_ - decode_seconds_) / seconds_a_token_;
  if (tokens <= static_cast<double>(kLeastTokens)) return kLeastTokens;
  return tokens >= 1e9 ? std::numeric_limits<std::size_t>::max() : static_cast<std::size_t>(tokens);
}

void PrefillBudget::observe(std::size_t prefill_tokens, double seconds) {
  if (prefill_tokens == 0) return learn(decode_seconds_, seconds);
  learn(seconds_a_token_, std::max(seconds - decode_seconds_, 1e-9) / static_cast<double>(prefill_tokens));
}

}  // namespace expertmesh

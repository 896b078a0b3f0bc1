#include "coordinator/bench/logit_errors.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/base/check.h"

namespace expertmesh {
namespace {

struct Row {
  explicit Row(std::span<float const> logits) : values(logits) {
    auto const choice = std::ranges::max_element(logits);
    best = static_cast<std::size_t>(choice - logits.begin());
    double sum = 0;
    for (float const x : logits) sum += std::exp(static_cast<double>(x) - static_cast<double>(*choice));
    log_sum = static_cast<double>(*choice) + std::log(sum);
    mean = std::accumulate(logits.begin(), logits.end(), 0.0) / static_cast<double>(logits.size());
  }
  [[nodiscard]] double logprob(std::size_t token) const { return static_cast<double>(values[token]) - log_sum; }
  [[nodiscard]] double centred(std::size_t token) const { return static_cast<double>(values[token]) - mean; }

  std::span<float const> values;
  std::size_t best = 0;  // the lowest id on ties
  double log_sum = 0;
  double mean = 0;
};

double mean_of(double sum, std::size_t count) {
  return count == 0 ? 0 : sum / static_cast<double>(count);
}

}  // namespace

void LogitErrors::add(std::span<float const> reference, std::span<float const> logits,
                      std::optional<std::size_t> next) {
  EM_CHECK(reference.size() == logits.size() && !logits.empty(), reference.size() << " and " << logits.size());
  Row const expected(reference);
  Row const got(logits);
  for (std::size_t v = 0; v < logits.size(); ++v) {
    double const error = got.centred(v) - expected.centred(v);
    square_of_reference_ += expected.centred(v) * expected.centred(v);
    square_of_error_ += error * error;
    largest_error_ = std::max(largest_error_, std::fabs(error));
    divergence_ += std::exp(expected.logprob(v)) * (expected.logprob(v) - got.logprob(v));
  }
  logits_ += logits.size();
  ++rows_;
  same_ += expected.best == got.best ? 1 : 0;
  if (!next) return;
  ++came_;
  surprise_ -= got.logprob(*next);
  reference_surprise_ -= expected.logprob(*next);
}

double LogitErrors::rms() const {
  return rows_ == 0 ? 0 : std::sqrt(square_of_error_ / square_of_reference_);
}

double LogitErrors::largest() const {
  return rows_ == 0 ? 0 : largest_error_ / std::sqrt(mean_of(square_of_reference_, logits_));
}

double LogitErrors::divergence() const {
  return mean_of(divergence_, rows_);
}

double LogitErrors::same_choice() const {
  return mean_of(static_cast<double>(same_), rows_);
}

double LogitErrors::perplexity() const {
  return came_ == 0 ? 0 : std::exp(mean_of(surprise_, came_));
}

double LogitErrors::reference_perplexity() const {
  return came_ == 0 ? 0 : std::exp(mean_of(reference_surprise_, came_));
}

}  // namespace expertmesh

// Log-probabilities of a row, from the sums of its weights.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "common/kernels/token_choice.h"

namespace expertmesh {

class LogSoftmax {
 public:
  // sum: of fine_weight() of all logits, taken as finite_logit() has them.
  LogSoftmax(float largest, FineWeight const& sum)
      : largest_(finite_logit(largest)), log_sum_(std::log1p(without_the_best(sum))) {}
  // Finite, so that every difference is: -inf and NaN as the smallest number.
  static float finite_logit(float logit) { return usable_logit(logit, -FLT_MAX); }
  [[nodiscard]] float of(float logit) const {
    return static_cast<float>(std::max(finite_logit(logit) - largest_ - log_sum_, static_cast<double>(-FLT_MAX)));
  }

 private:
  // Its 1, in which small terms would be lost.
  static double without_the_best(FineWeight const& sum) {
    double const high = static_cast<double>(sum.high) - kOneWeight;
    return (high + static_cast<double>(static_cast<std::int64_t>(sum.low)) / kOneWeight) / kOneWeight;
  }
  double largest_;
  double log_sum_;
};

}  // namespace expertmesh

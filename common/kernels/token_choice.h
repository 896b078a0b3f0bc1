// How a token is chosen among the logits of a row: numbers that host and device have to the last bit. Weights are
// whole multiples of 2^-44, the best token's being 1, so their sums are exact: any order gives the same, and a row's
// token is a matter of its logits alone. A weight is off by 2^-45 at most.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/base/strong_id.h"
#include "common/kernels/both.h"

namespace expertmesh {

constexpr std::size_t kMostTokens = std::size_t{1} << 19;  // V: sums of weights stay below 2^63
constexpr std::size_t kMostRanked = 20;                    // tokens that a row's log-probabilities list on a device

// ---- the order of the logits
// NaN as -inf, +inf as the largest finite number, -0 as 0; not below `lowest`.
EM_BOTH inline float usable_logit(float x, float lowest = -INFINITY) {
  float const y = x > lowest ? x : lowest;
  return (y < FLT_MAX ? y : FLT_MAX) + 0.0F;
}
// Numbers in the order of the usable logits.
EM_BOTH inline std::uint32_t order_of_logit(float usable) {
  std::uint32_t bits;
  memcpy(&bits, &usable, sizeof bits);
  return bits ^ (0x80000000U | (0U - (bits >> 31)));  // of negative ones all bits
}
EM_BOTH inline float logit_of_order(std::uint32_t order) {
  std::uint32_t const bits = (order & 0x80000000U) != 0 ? order & 0x7fffffffU : ~order;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
// The larger the better: by the logit, the lower id first among equals. Different for all tokens of a row, never 0.
EM_BOTH inline std::uint64_t rank_of(float usable, std::uint32_t id) {
  return static_cast<std::uint64_t>(order_of_logit(usable)) << 32 | (0xffffffffU - id);
}
EM_BOTH inline float logit_of_rank(std::uint64_t rank) {
  return logit_of_order(static_cast<std::uint32_t>(rank >> 32));
}
EM_BOTH inline std::uint32_t id_of_rank(std::uint64_t rank) {
  return 0xffffffffU - static_cast<std::uint32_t>(rank);
}

// ---- weights
// e^z for z <= 0, and 0 below -64 and for NaN: z = n ln 2 + r, |r| <= ln 2 / 2, Taylor's series of e^r to r^13. Off by
// less than 1.5 units in the last place. Products and sums are rounded one by one (as all code here is compiled):
// processors without a fused multiply-add would take a call for each. 43 operations.
EM_BOTH inline double exp_of_nonpositive(double exponent) {
  double const z = exponent >= -64 ? exponent : -64.0;
  constexpr double kShift = 0x1.8p52;  // what is added to it is rounded to a whole number, in the lowest bits
  double const shifted = z * 0x1.71547652b82fep0 + kShift;
  double const n = shifted - kShift;
  double const r = (z - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  std::uint64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (static_cast<std::uint64_t>(static_cast<std::uint32_t>(bits)) + 1023) << 52;  // 2^n; the sign is shifted out
  double power;
  memcpy(&power, &bits, sizeof power);
  return exponent >= -64 ? p * power : 0.0;
}

constexpr double kOneWeight = 0x1p44;

// To the nearest, ties to even; |x| < 2^51.
EM_BOTH inline std::int64_t nearest_whole(double x) {
  double const shifted = x + 0x1.8p52;
  std::int64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  return bits - 0x4338000000000000;  // those of the shift
}

// The weights from which a token of a row is drawn.
struct TokenWeights {
  double largest = 0;  // usable logit, finite
  double inverse_temperature = 1;
  double min_p = 0;  // of the best: less is 0

  EM_BOTH double log_of(float usable) const { return (usable - largest) * inverse_temperature; }
  EM_BOTH std::uint64_t of(float usable) const {
    double const weight = exp_of_nonpositive(log_of(usable));
    bool const cut = usable == -INFINITY || weight < min_p;
    return cut ? 0 : static_cast<std::uint64_t>(nearest_whole(weight * kOneWeight));
  }
};

// e^(logit - largest) for the sum that log-probabilities are made of: to 2^-88, since the best token's own share may
// be all but 1.
struct FineWeight {
  std::uint64_t high = 0;  // 2^-44
  std::uint64_t low = 0;   // 2^-88, of either sign: two's complement
};
EM_BOTH inline FineWeight fine_weight(float finite, double largest) {
  double const weight = exp_of_nonpositive(finite - largest) * kOneWeight;
  std::int64_t const high = nearest_whole(weight);
  std::int64_t const low = nearest_whole((weight - static_cast<double>(high)) * kOneWeight);
  return {static_cast<std::uint64_t>(high), static_cast<std::uint64_t>(low)};
}

// ---- the cuts and the draw
// Whether tokens that weigh so much are top_p of `total`: in fp32, top_p's own precision, so that one of ten equal
// tokens reaches 0.1.
EM_BOTH inline bool reaches(std::uint64_t weight, std::uint64_t total, float top_p) {
  return static_cast<float>(static_cast<double>(weight) / static_cast<double>(total)) >= top_p;
}
// For top_p < 1: tokens whose log_of() is below this all together weigh less than half of what top_p leaves out,
// rounded up as they may be, and with the error of any logarithm. They are not in the smallest set that reaches top_p.
EM_BOTH inline double log_of_surely_cut(std::uint64_t total, float top_p, std::size_t vocab) {
  double const share = (1.0 - static_cast<double>(top_p)) * static_cast<double>(total) / kOneWeight;
  return static_cast<double>(logf(static_cast<float>(share / static_cast<double>(4 * vocab)))) - 0.01;
}
// The token drawn is the first, in order of id, with which the weights' sum is greater than this. uniform: in [0, 1).
EM_BOTH inline std::uint64_t drawn_weight(std::uint64_t mass, double uniform) {
  auto const target = static_cast<std::uint64_t>(static_cast<double>(mass) * uniform);
  return target < mass ? target : mass - 1;
}

// ---- what a request asks of single logits
// In the order of the fields.
struct TokenAdjustment {
  std::uint32_t token = 0;
  float bias = 0;      // added first
  bool never = false;  // then it cannot be chosen
  bool seen = false;   // the repetition penalty is its
  float penalty = 0;   // subtracted in the end
  float logit = 0;     // on a device: as it was
};
EM_BOTH inline float adjusted_logit(float x, TokenAdjustment const& a, float repetition_penalty) {
  x += a.bias;
  if (a.never) x = -INFINITY;
  if (a.seen) x = x > 0 ? x / repetition_penalty : x * repetition_penalty;
  return x - a.penalty;
}

// ---- Device::choose_tokens()
enum class TokenChoice : std::uint8_t {
  none,   // the row asks for nothing
  given,  // RowChoice::token
  best,   // the largest adjusted logit
  drawn
};

struct RowChoice {
  double inverse_temperature = 1;
  double uniform = 0;
  float min_p = 0;
  float top_p = 1;
  std::uint32_t top_k = 0;  // 0: all
  float repetition_penalty = 1;
  std::uint32_t first_adjustment = 0;
  std::uint32_t num_adjustments = 0;
  TokenId token = 0;
  TokenChoice choice = TokenChoice::none;
  bool log_sum = false;          // the sums of fine_weight()
  std::uint32_t num_ranked = 0;  // best tokens to list, at most kMostRanked and V
};

// Numbers as CUDA's atomic functions have them; all 0 before.
struct RowChosen {
  unsigned long long best = 0;           // rank_of() the largest logit
  unsigned long long best_adjusted = 0;  // of a row with adjustments
  unsigned long long sum_high = 0;       // of fine_weight(), the best one's included
  unsigned long long sum_low = 0;
  TokenId token = 0;
  float logit = 0;  // the token's, before adjustments
};

}  // namespace expertmesh

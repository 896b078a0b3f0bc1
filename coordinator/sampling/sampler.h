// Logits of one position -> the next token, and log-probabilities. A pure function of the logits and the key, whatever
// else is in the batch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "coordinator/engine/generate_request.h"

namespace expertmesh {

class Sampler {
 public:
  explicit Sampler(std::size_t vocab);  // V

  // logits: [V]. temperature 0: the largest logit, lowest id among equals. Else: softmax(logits / temperature), cut to
  // the smallest set of tokens whose probability reaches top_p (Holtzman et al. 2020; the lower id first among equals),
  // drawn by inverse CDF in order of id with a uniform number keyed by (seed, choice 0, position). position: of the
  // new token. A NaN or -inf logit is never chosen; if nothing can be, token 0 is. O(V); does not allocate.
  TokenId sample(std::span<float const> logits, SamplingParams const& params, std::uint32_t position);

  // log_softmax(logits) of `chosen` and of the `count` best (best first, lowest id first among equals; all V if there
  // are fewer). Finite whatever the logits: a log-probability below fp32's range is its smallest number.
  TokenLogprobs logprobs(std::span<float const> logits, TokenId chosen, std::size_t count);

 private:
  struct Nucleus {
    TokenId last = 0;  // the least probable token that is kept
    double mass = 0;   // weight of all that are kept
  };
  // The smallest set whose share of `total`, the sum of weight_, reaches top_p < 1.
  Nucleus nucleus(double total, float top_p);

  std::vector<TokenId> order_;  // [V] scratch
  std::vector<double> weight_;  // [V] scratch: exp((logit - largest) / temperature)
};

}  // namespace expertmesh

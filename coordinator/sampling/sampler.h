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
  explicit Sampler(std::size_t vocab);

  // temperature 0: the largest logit, lowest id among equals. Else: softmax(logits / temperature), cut to the smallest
  // set of tokens whose probability reaches top_p (Holtzman et al. 2020), drawn by inverse CDF over ids in order of
  // falling probability with a uniform number keyed by (seed, choice 0, position). position: of the new token.
  // A NaN logit is never chosen; if nothing can be, token 0 is.
  TokenId sample(std::span<float const> logits, SamplingParams const& params, std::uint32_t position);

  // log_softmax(logits) of `chosen` and of the `count` best (best first, lowest id first among equals).
  TokenLogprobs logprobs(std::span<float const> logits, TokenId chosen, std::size_t count);

 private:
  // The first `count` of order_ become the ids of the largest logits, in order.
  void rank(std::span<float const> logits, std::size_t count);

  std::vector<TokenId> order_;  // [V] scratch
  std::vector<double> weight_;  // [V] scratch
};

}  // namespace expertmesh

// Logits of one position -> the next token, and log-probabilities. A pure function of the logits and the key, whatever
// else is in the batch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "coordinator/sampling/logit_adjustments.h"
#include "coordinator/sampling/sampling_params.h"

namespace expertmesh {

// The first new token where the request says which.
std::optional<TokenId> forced_token(SamplingParams const& params, SampledAfter const& after);
// The uniform number of a draw, in [0, 1).
double uniform_for(SamplingParams const& params, SampledAfter const& after);
double inverse_temperature(SamplingParams const& params);  // of one that is not 0
// Whether a token with this logit counts as chosen: otherwise the best of them is none.
bool is_number(float logit);

class Sampler {
 public:
  explicit Sampler(std::size_t vocab);  // V, at most kMostTokens

  // logits: [V]. What params ask of them first: bias, min_tokens, penalties (repetition: Keskar et al. 2019; frequency
  // and presence: as OpenAI defines them). Then with temperature 0 the largest logit, lowest id among equals. Else
  // softmax(logits / temperature), cut by min_p, to the top_k best, and to the smallest set of tokens whose share of
  // what is left reaches top_p (Holtzman et al. 2020), drawn by inverse CDF in order of id with a uniform number keyed
  // by (seed, choice, number of tokens before). The best are those with the largest logits, the lower id first among
  // equals. A NaN or -inf logit is never chosen; if nothing can be, token 0 is. A forced first token is taken before
  // all of this. The numbers are those of common/kernels/token_choice.h. O(V + tokens); does not allocate.
  TokenId sample(std::span<float const> logits, SamplingParams const& params, SampledAfter const& after);

  // log_softmax(logits) of `chosen` and of the `count` best (best first, lowest id first among equals; all V if there
  // are fewer). Finite whatever the logits: a log-probability below fp32's range is its smallest number.
  TokenLogprobs logprobs(std::span<float const> logits, TokenId chosen, std::size_t count);

 private:
  [[nodiscard]] std::span<float const> adjusted(std::span<float const> logits, SamplingParams const& params,
                                                SampledAfter const& after);
  // Ranks of the last token that is kept: of the `count` best; of the smallest set, all of it at least as good as
  // `last`, whose share of `total` reaches top_p < 1.
  std::uint64_t last_of_best(std::span<float const> logits, std::size_t count);
  std::uint64_t last_of_nucleus(std::span<float const> logits, TokenWeights const& weights, float top_p,
                                std::uint64_t last, std::uint64_t total);

  std::vector<std::uint64_t> ranks_;   // [V] scratch
  std::vector<std::uint64_t> weight_;  // [V] scratch; 0: cut
  std::vector<float> adjusted_;        // [V] scratch: logits after bias and penalties
  LogitAdjustments adjustments_;
};

}  // namespace expertmesh

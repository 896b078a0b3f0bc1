// Logits of one position -> the next token, and log-probabilities. A pure function of the logits and the key, whatever
// else is in the batch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "coordinator/sampling/sampling_params.h"

namespace expertmesh {

// What the sequence holds before the token that is sampled.
struct SampledAfter {
  std::span<TokenId const> tokens;     // prompt and answer so far
  std::size_t prompt_length = 0;       // tokens[0 … prompt_length) are the prompt
  std::span<TokenId const> eos_ids{};  // of the model, for min_tokens
};

class Sampler {
 public:
  explicit Sampler(std::size_t vocab);  // V

  // logits: [V]. What params ask of them first: bias, min_tokens, penalties (repetition: Keskar et al. 2019; frequency
  // and presence: as OpenAI defines them). Then with temperature 0 the largest logit, lowest id among equals. Else
  // softmax(logits / temperature), cut by min_p, to the top_k best, and to the smallest set of tokens whose share of
  // what is left reaches top_p (Holtzman et al. 2020; the lower id first among equals), drawn by inverse CDF in order
  // of id with a uniform number keyed by (seed, choice, number of tokens before). A NaN or -inf logit is
  // never chosen; if nothing can be, token 0 is. A forced first token is taken before all of this. O(V + tokens); does
  // not allocate.
  TokenId sample(std::span<float const> logits, SamplingParams const& params, SampledAfter const& after);

  // log_softmax(logits) of `chosen` and of the `count` best (best first, lowest id first among equals; all V if there
  // are fewer). Finite whatever the logits: a log-probability below fp32's range is its smallest number.
  TokenLogprobs logprobs(std::span<float const> logits, TokenId chosen, std::size_t count);

 private:
  struct Nucleus {
    TokenId last = 0;  // the least probable token that is kept
    double mass = 0;   // weight of all that are kept
  };
  std::span<float const> adjusted(std::span<float const> logits, SamplingParams const& params,
                                  SampledAfter const& after);
  void penalise(SamplingParams const& params, SampledAfter const& after);
  double keep_best(std::size_t count);
  // The smallest set whose share of `total`, the sum of weight_, reaches top_p < 1.
  Nucleus nucleus(double total, float top_p);

  std::vector<TokenId> order_;         // [V] scratch
  std::vector<double> weight_;         // [V] scratch: exp((logit - largest) / temperature), 0: cut
  std::vector<float> adjusted_;        // [V] scratch: logits after bias and penalties
  std::vector<std::uint32_t> counts_;  // [V] times a token is in the answer; all 0 between calls
};

}  // namespace expertmesh

// What a request asks of the sampler, and the log-probabilities it gives. Plain data.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "common/base/strong_id.h"

namespace expertmesh {

// In the order in which they act on the logits of one position (the order of the field's servers).
struct SamplingParams {
  std::vector<std::pair<TokenId, float>> logit_bias{};  // added; each token once
  std::size_t min_tokens = 0;             // new tokens before an end-of-sequence or stop token may be drawn
  std::vector<TokenId> stop_token_ids{};  // end the answer as an end-of-sequence token does
  float repetition_penalty = 1.0F;  // > 0: positive logits of tokens seen (prompt too) are divided, others times it
  float frequency_penalty = 0.0F;   // subtracted for each time the token is in the answer
  float presence_penalty = 0.0F;    // subtracted once if it is in the answer
  float temperature = 1.0F;         // 0: greedy (exact argmax, lowest id on ties)
  float min_p = 0.0F;               // [0, 1]: tokens less probable than this share of the best are dropped
  std::size_t top_k = 0;            // 0: all; else the k best, lowest id first among equals
  float top_p = 1.0F;               // (0, 1]: smallest set of tokens with at least this probability
  std::uint64_t seed = 0;           // drawn at admission where the client gave none
  std::optional<TokenId> forced_first{};  // the first new token, whatever the logits
  std::uint32_t choice = 0;               // index among the answers to one prompt: each has random numbers of its own
};

// What the sequence holds before the token that is sampled.
struct SampledAfter {
  std::span<TokenId const> tokens;     // prompt and answer so far
  std::size_t prompt_length = 0;       // tokens[0 … prompt_length) are the prompt
  std::span<TokenId const> eos_ids{};  // of the model, for min_tokens
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;
};

// Log-probabilities of the raw logits (before temperature) at one position.
struct TokenLogprobs {
  TokenLogprob chosen;            // the sampled token, or the prompt's own
  std::vector<TokenLogprob> top;  // best first, lowest id first among equals
};

}  // namespace expertmesh

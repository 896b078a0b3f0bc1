// What a step wants of one row of logits, and what the row gave. Plain data.
#pragma once
#include <cstddef>
#include <optional>

#include "coordinator/sampling/sampling_params.h"

namespace expertmesh {

struct RowTask {
  SamplingParams const* sampling = nullptr;  // null: no token
  SampledAfter after{};
  std::optional<std::size_t> token_logprobs{};  // of the sampled token, and of so many best
  TokenId next_of_prompt = 0;
  std::optional<std::size_t> prompt_logprobs{};  // of next_of_prompt, and of so many best
};

struct RowResult {
  std::optional<TokenId> token{};  // where it was wanted; none if the logits are no numbers
  std::optional<TokenLogprobs> token_logprobs{};
  std::optional<TokenLogprobs> prompt_logprobs{};
};

}  // namespace expertmesh

// What a request asks of single logits - bias, min_tokens, penalties - as a list of tokens: what most rows have little
// of, and a device is sent.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/token_choice.h"
#include "coordinator/sampling/sampling_params.h"

namespace expertmesh {

class LogitAdjustments {
 public:
  explicit LogitAdjustments(std::size_t vocab);  // V

  // One for each token that params ask something of, in any order: valid until the next call. O(tokens); does not
  // allocate.
  std::span<TokenAdjustment const> of(SamplingParams const& params, SampledAfter const& after);

 private:
  TokenAdjustment& at(TokenId id);
  void penalise(SamplingParams const& params, SampledAfter const& after);

  std::vector<TokenAdjustment> list_;  // room for V
  std::vector<std::uint32_t> place_;   // [V] 1 + in list_, or 0; all 0 between calls
};

}  // namespace expertmesh

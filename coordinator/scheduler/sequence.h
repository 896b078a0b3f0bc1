// One request's tokens on their way through the model.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/base/strong_id.h"

namespace expertmesh {

struct Sequence {
  // Filled by the engine at submission.
  SequenceId id;
  std::vector<TokenId> tokens;  // the prompt; the engine appends each new token
  std::size_t prompt_length = 0;
  std::size_t max_length = 0;  // prompt + most new tokens
  bool prompt_logits = false;  // every prompt position needs its logits, not only the last

  // Filled by the scheduler.
  std::size_t num_computed = 0;                          // tokens whose keys and values are in the cache
  std::vector<std::vector<std::uint32_t>> block_tables;  // [KV groups][blocks], empty while it waits

  [[nodiscard]] std::size_t num_pending() const { return tokens.size() - num_computed; }
};

}  // namespace expertmesh

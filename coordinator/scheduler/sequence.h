// One request's tokens on their way through the model.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/base/strong_id.h"

namespace expertmesh {

// Where a sequence's keys and values are in one KV group: positions from i * block_tokens on in block i.
struct BlockTable {
  std::vector<std::uint32_t> blocks;
  std::size_t num_freed = 0;  // at the front: out of every later token's reach and given back; kNoKvBlock stands there

  [[nodiscard]] std::size_t num_held() const { return blocks.size() - num_freed; }
};

struct Sequence {
  // Filled by the engine at submission.
  SequenceId id;
  std::vector<TokenId> tokens;  // the prompt; the engine appends each new token
  std::size_t prompt_length = 0;
  std::size_t max_length = 0;     // prompt + most new tokens
  bool prompt_logits = false;     // every prompt position needs its logits, not only the last
  std::vector<TokenId> input;     // of the encoder, where there is one; `tokens` are the decoder's then
  bool reuse_prefix = false;      // blocks of an earlier sequence that began alike serve: not each token is run here
  std::uint32_t prefix_kind = 0;  // sequences of different kinds have different keys for the same tokens

  // Filled by the scheduler.
  std::size_t num_computed = 0;           // tokens whose keys and values were written to the cache
  std::vector<BlockTable> block_tables;   // [KV groups], empty while it waits
  bool encoded = false;                   // the input's keys and values were written to the cache
  std::optional<std::size_t> num_cached;  // tokens that were there when it first started; empty before
  std::uint64_t prefix = 0;               // in the prefix cache, of its first `num_known` blocks
  std::size_t num_known = 0;

  // Kept by the model, with room from the scheduler: tokens that went to each expert with a capacity, of all layers.
  // `next` becomes `so_far` when the step that wrote it has run.
  struct ExpertCounts {
    std::vector<std::uint32_t> so_far;
    std::vector<std::uint32_t> next;
  } expert_counts;

  [[nodiscard]] std::size_t num_pending() const { return tokens.size() - num_computed; }
  [[nodiscard]] bool awaits_encoder() const { return !input.empty() && !encoded; }
};

}  // namespace expertmesh

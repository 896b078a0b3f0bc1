// What the KV cache of a group of layers looks like. Layers of one group share a block table.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "common/tensor/dtype.h"

namespace expertmesh {

// Which positions a token attends to, besides its own.
enum class KvCacheKind : std::uint8_t {
  full,     // all before it
  window,   // the span_tokens - 1 before it
  chunked,  // those before it from the last multiple of span_tokens on
  cross,    // all of the encoder's input: as many as that has, before the first token is computed
};
std::string_view name_of(KvCacheKind kind);

struct KvCacheSpec {
  KvCacheKind kind = KvCacheKind::full;
  std::size_t span_tokens = 0;  // of window and chunked; at least 1
  std::size_t block_tokens = 16;
  std::size_t bytes_per_block = 0;  // keys and values of one block in all layers of the group
  DType dtype = DType::f32;
  std::vector<std::uint32_t> layers;  // indices in the stack

  // Whether positions fall out of reach as a sequence grows.
  [[nodiscard]] bool has_span() const { return kind == KvCacheKind::window || kind == KvCacheKind::chunked; }
  // The first position that the token at `position` attends to. Never less for a later token.
  [[nodiscard]] std::size_t first_needed(std::size_t position) const;
  // The most blocks that a sequence of up to `tokens` tokens needs at once while at most step_tokens of them (at least
  // 1) are computed in a step: whatever first_needed of the first of these reaches back to, and these.
  [[nodiscard]] std::size_t most_blocks(std::size_t tokens, std::size_t step_tokens) const;
};

}  // namespace expertmesh

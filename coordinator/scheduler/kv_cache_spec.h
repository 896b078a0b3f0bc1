// What the KV cache of a group of layers looks like. Layers of one group share a block table.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/tensor/dtype.h"

namespace expertmesh {

enum class KvCacheKind : std::uint8_t { full, window };

struct KvCacheSpec {
  KvCacheKind kind = KvCacheKind::full;
  std::optional<std::size_t> window;  // tokens, for KvCacheKind::window
  std::size_t block_tokens = 16;
  std::size_t bytes_per_block = 0;  // keys and values of one block in all layers of the group
  DType dtype = DType::f32;
  std::vector<std::uint32_t> layers;  // indices in the stack
};

}  // namespace expertmesh

#include "coordinator/model/prefix_kind.h"

#include <algorithm>

namespace expertmesh {

std::uint32_t prefix_kind(ModelSpec const& spec, std::size_t prompt_length) {
  std::size_t kind = 0;
  for (auto const& layer : spec.decoder().layers) {
    RopeSpec const& rope = layer.attention.rope;
    if (!rope.depends_on_length() || prompt_length <= rope.original_max_position) continue;
    // Of several lengths the greatest that is exceeded tells which all are.
    kind = std::max(kind, rope.kind == RopeKind::dynamic ? prompt_length : rope.original_max_position);
  }
  return static_cast<std::uint32_t>(kind);
}

}  // namespace expertmesh

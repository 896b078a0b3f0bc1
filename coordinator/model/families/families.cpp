#include "coordinator/model/families/families.h"

#include <array>

namespace expertmesh {

std::span<Family const> families() {
  static constexpr std::array<Family, 4> kFamilies = {{
      {"llama", build_llama},
      {"mixtral", build_mixtral},
      {"noisy_topk_moe", build_noisy_topk_moe},
      {"qwen3_moe", build_qwen3_moe},
  }};
  return kFamilies;
}

}  // namespace expertmesh

#include "coordinator/model/families/families.h"

#include <array>

namespace expertmesh {

std::span<Family const> families() {
  static constexpr std::array kFamilies = {
      Family{"deepseek_v2", build_deepseek_v2},
      Family{"deepseek_v3", build_deepseek_v3},
      Family{"dots1", build_dots1},
      Family{"ernie4_5_moe", build_ernie4_5_moe},
      Family{"glm4_moe", build_glm4_moe},
      Family{"gpt_oss", build_gpt_oss},
      Family{"granitemoe", build_granitemoe},
      Family{"granitemoeshared", build_granitemoeshared},
      Family{"hunyuan_v1_moe", build_hunyuan_v1_moe},
      Family{"llama", build_llama},
      Family{"llama4_text", build_llama4_text},
      Family{"minimax_m2", build_minimax_m2},
      Family{"mistral", build_mistral},
      Family{"mixtral", build_mixtral},
      Family{"nllb-moe", build_nllb_moe},
      Family{"noisy_topk_moe", build_noisy_topk_moe},
      Family{"olmoe", build_olmoe},
      Family{"phimoe", build_phimoe},
      Family{"qwen2", build_qwen2},
      Family{"qwen2_moe", build_qwen2_moe},
      Family{"qwen3", build_qwen3},
      Family{"qwen3_moe", build_qwen3_moe},
      Family{"switch_transformers", build_switch_transformers},
  };
  return kFamilies;
}

}  // namespace expertmesh

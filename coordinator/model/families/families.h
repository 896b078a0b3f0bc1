// The model families: each file turns a config.json into a ModelSpec. Adding one is a file, a row in families.cpp and
// its golden.
#pragma once
#include <span>
#include <string_view>

#include "coordinator/model/config_reader.h"
#include "coordinator/model/model_spec.h"

namespace expertmesh {

struct Family {
  std::string_view model_type;  // of config.json
  // Reads every field it knows; the caller adds the end-of-sequence ids and refuses what is left.
  ModelSpec (*build)(ConfigReader& config, ModelOptions const& options);
};
std::span<Family const> families();

ModelSpec build_deepseek_v2(ConfigReader& config, ModelOptions const& options);
ModelSpec build_deepseek_v3(ConfigReader& config, ModelOptions const& options);
ModelSpec build_dots1(ConfigReader& config, ModelOptions const& options);
ModelSpec build_ernie4_5_moe(ConfigReader& config, ModelOptions const& options);
ModelSpec build_glm4_moe(ConfigReader& config, ModelOptions const& options);
ModelSpec build_gpt_oss(ConfigReader& config, ModelOptions const& options);
ModelSpec build_granitemoe(ConfigReader& config, ModelOptions const& options);
ModelSpec build_granitemoeshared(ConfigReader& config, ModelOptions const& options);
ModelSpec build_hunyuan_v1_moe(ConfigReader& config, ModelOptions const& options);
ModelSpec build_llama(ConfigReader& config, ModelOptions const& options);
ModelSpec build_llama4_text(ConfigReader& config, ModelOptions const& options);
ModelSpec build_minimax_m2(ConfigReader& config, ModelOptions const& options);
ModelSpec build_mistral(ConfigReader& config, ModelOptions const& options);
ModelSpec build_mixtral(ConfigReader& config, ModelOptions const& options);
ModelSpec build_nllb_moe(ConfigReader& config, ModelOptions const& options);
ModelSpec build_noisy_topk_moe(ConfigReader& config, ModelOptions const& options);
ModelSpec build_olmoe(ConfigReader& config, ModelOptions const& options);
ModelSpec build_phimoe(ConfigReader& config, ModelOptions const& options);
ModelSpec build_qwen2(ConfigReader& config, ModelOptions const& options);
ModelSpec build_qwen2_moe(ConfigReader& config, ModelOptions const& options);
ModelSpec build_qwen3(ConfigReader& config, ModelOptions const& options);
ModelSpec build_qwen3_moe(ConfigReader& config, ModelOptions const& options);
ModelSpec build_switch_transformers(ConfigReader& config, ModelOptions const& options);

}  // namespace expertmesh

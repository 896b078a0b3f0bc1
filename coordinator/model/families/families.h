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

ModelSpec build_llama(ConfigReader& config, ModelOptions const& options);
ModelSpec build_mixtral(ConfigReader& config, ModelOptions const& options);
ModelSpec build_noisy_topk_moe(ConfigReader& config, ModelOptions const& options);
ModelSpec build_qwen3_moe(ConfigReader& config, ModelOptions const& options);

}  // namespace expertmesh

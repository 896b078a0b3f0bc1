// What `expertmesh info --json` says of a configuration, so that whoever plans for a model needs to know no family.
#pragma once
#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>

#include "coordinator/model/model_plan.h"

namespace expertmesh {

// Sizes, and for each stack its layers as runs of equal ones: bytes and multiply-adds of a token (layer_cost.h). A part
// that a layer does not have is left out.
nlohmann::ordered_json model_facts(ModelSpec const& spec, DType dtype, Quantization quantization, DType kv_dtype,
                                   std::size_t num_workers, Holders const& holders = {});

// Bytes that are no UTF-8 (of a path) are replaced.
std::string to_text(nlohmann::ordered_json const& json);

}  // namespace expertmesh

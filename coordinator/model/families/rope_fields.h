// The rotary embedding as configs spell it: rope_theta and rope_scaling beside each other, or both inside
// rope_parameters.
#pragma once
#include <cstddef>
#include <optional>
#include <string_view>

#include "coordinator/model/config_reader.h"
#include "coordinator/model/model_spec.h"

namespace expertmesh {

struct RopeDefaults {
  double theta = 10000.0;
  std::size_t head_dim = 0;
  double partial_rotary_factor = 1.0;
  bool partial = false;  // another one may be given
  bool interleaved = false;
  std::size_t max_position = 0;  // max_position_embeddings
};

// Throws ModelError for an unknown kind, a field its kind does not have, and factors that do not fit.
RopeSpec read_rope(ConfigReader& config, RopeDefaults const& defaults);

// A number among the RoPE parameters, wherever they are.
std::optional<double> rope_number(ConfigReader& config, std::string_view field);

// By how much yarn's magnitude grows with the context's stretching: 0.1 mscale ln(factor) + 1 (Peng et al. 2023, eq.
// 22; mscale: DeepSeek-AI).
double yarn_magnitude(double factor, double mscale);

}  // namespace expertmesh

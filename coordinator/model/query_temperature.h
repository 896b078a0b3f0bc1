// Queries that look sharper the further back there is to look.
#pragma once
#include <cstdint>
#include <span>

#include "common/kernels/exec.h"
#include "common/tensor/tensor.h"
#include "coordinator/model/model_spec.h"

namespace expertmesh {
// q: [T,Q*D]; q[t] *= 1 + scale * ln(floor((positions[t] + 1) / floor) + 1), in fp32 as transformers computes it.
void apply_temperature(Exec const& exec, TemperatureTuning const& tuning, std::span<std::uint32_t const> positions,
                       MatrixView<float> q);
}  // namespace expertmesh

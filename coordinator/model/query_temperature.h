// Queries that look sharper the further back there is to look.
#pragma once
#include "common/kernels/exec.h"
#include "common/kernels/paged_attention.h"
#include "common/tensor/tensor.h"
#include "coordinator/model/model_spec.h"

namespace expertmesh {
// q: [T,Q*D]; with p the position of token t, q[t] *= 1 + scale * ln(floor((p + 1) / floor) + 1), in fp32 as
// transformers computes it.
void apply_temperature(Exec const& exec, TemperatureTuning const& tuning, TokenPlaces const& places,
                       MatrixView<float> q);
}  // namespace expertmesh

// The activation between the two GEMMs of an FFN.
#pragma once
#include "common/config/activation.h"
#include "common/kernels/exec.h"
#include "common/tensor/tensor.h"

namespace expertmesh {
// in: [T,2I], columns 0…I-1 gate, I…2I-1 up: out[t][i] = f(gate) * up (clamped_silu: see activation.h). Without a gate
// in: [T,I]: out[t][i] = f(in[t][i]). out: [T,I], may not overlap with in.
void ffn_activation(Exec const& exec, ActivationSpec const& f, MatrixView<float const> in, MatrixView<float> out);
}  // namespace expertmesh

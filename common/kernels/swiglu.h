// The gated activation between the two GEMMs of a dense FFN.
#pragma once
#include "common/config/expert_spec.h"
#include "common/kernels/exec.h"
#include "common/tensor/tensor.h"

namespace expertmesh {
// gate_up: [T,2I], columns 0…I-1 gate, I…2I-1 up; out[t][i] = silu(gate) * up, silu(x) = x / (1 + e^-x). out: [T,I].
void swiglu(Exec const& exec, Activation activation, MatrixView<float const> gate_up, MatrixView<float> out);
}  // namespace expertmesh

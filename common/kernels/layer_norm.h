// Layer normalisation (Ba et al. 2016): (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias, mean and (population)
// variance over a row.
#pragma once
#include <span>

#include "common/kernels/exec.h"
#include "common/tensor/tensor.h"

namespace expertmesh {
// x, out: [T,H]; weight: [H]; bias: [H], or empty: none. out may be x.
void layer_norm(Exec const& exec, MatrixView<float const> x, std::span<float const> weight, std::span<float const> bias,
                float epsilon, MatrixView<float> out);
}  // namespace expertmesh

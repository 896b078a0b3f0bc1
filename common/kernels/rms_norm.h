// RMS normalisation (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + epsilon) * weight, the mean over a row.
#pragma once
#include <span>

#include "common/kernels/exec.h"
#include "common/tensor/tensor.h"

namespace expertmesh {
// x, out: [T,H]; weight: [H]. out may be x.
void rms_norm(Exec const& exec, MatrixView<float const> x, std::span<float const> weight, float epsilon,
              MatrixView<float> out);
// In place on each head of x: [T, num_heads*D] (a column range of a wider matrix is fine); weight: [D], or empty: none.
void rms_norm_heads(Exec const& exec, MatrixView<float> x, std::size_t num_heads, std::span<float const> weight,
                    float epsilon);
}  // namespace expertmesh

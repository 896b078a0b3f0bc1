// Rotary position embedding (Su et al. 2021), half-split layout: element i of a head is paired with element i + D/2.
#pragma once
#include <cstdint>
#include <span>

#include "common/kernels/exec.h"
#include "common/tensor/tensor.h"

namespace expertmesh {
// cos/sin of position * inverse_frequency[i], angle formed in fp32: cos, sin: [T,D/2]. Once per step for all layers.
void rope_angles(Exec const& exec, std::span<std::uint32_t const> positions, std::span<float const> inverse_frequency,
                 MatrixView<float> cos, MatrixView<float> sin);
// In place on each head of x: [T, num_heads*D]: x[i] = x[i] cos - x[i+D/2] sin; x[i+D/2] = x[i+D/2] cos + x[i] sin.
void apply_rope(Exec const& exec, MatrixView<float> x, std::size_t num_heads, MatrixView<float const> cos,
                MatrixView<float const> sin);
}  // namespace expertmesh

// Rotary position embedding (Su et al. 2021).
#pragma once
#include <cstddef>

#include "common/kernels/exec.h"
#include "common/tensor/tensor.h"

namespace expertmesh {

// Which elements of the heads are rotated: R of each, R = 2 x columns of the angles.
struct RopeHeads {
  std::size_t num_heads = 0;
  std::size_t head_dim = 0;  // D
  std::size_t first = 0;     // first rotated element of a head
  bool interleaved = false;  // element 2i is paired with 2i+1, not i with i + R/2
};

// In place on each head of x: [T, num_heads*D]. A pair (a, b) becomes (a cos - b sin, b cos + a sin); cos, sin:
// [T,R/2].
void apply_rope(Exec const& exec, MatrixView<float> x, RopeHeads const& heads, MatrixView<float const> cos,
                MatrixView<float const> sin);

}  // namespace expertmesh

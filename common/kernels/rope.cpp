#include "common/kernels/rope.h"

#include <cmath>

#include "common/base/check.h"

namespace expertmesh {

void rope_angles(Exec const& exec, std::span<std::uint32_t const> positions, std::span<float const> inverse_frequency,
                 MatrixView<float> cos, MatrixView<float> sin) {
  EM_CHECK(cos.rows == positions.size() && cos.cols == inverse_frequency.size() && sin.cols == cos.cols,
           "T " << positions.size());
  exec.pool().parallel_for(positions.size(), [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t)
      for (std::size_t i = 0; i < inverse_frequency.size(); ++i) {
        float const angle = static_cast<float>(positions[t]) * inverse_frequency[i];
        cos.row(t)[i] = std::cos(angle);
        sin.row(t)[i] = std::sin(angle);
      }
  });
}

void apply_rope(Exec const& exec, MatrixView<float> x, std::size_t num_heads, MatrixView<float const> cos,
                MatrixView<float const> sin) {
  std::size_t const half = cos.cols;
  EM_CHECK(x.cols == num_heads * 2 * half && cos.rows == x.rows,
           "x [" << x.rows << "," << x.cols << "], " << num_heads << " heads of 2 x " << half);
  exec.pool().parallel_for(x.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t)
      for (std::size_t h = 0; h < num_heads; ++h) {
        float* a = x.row(t) + h * 2 * half;
        float* b = a + half;
        for (std::size_t i = 0; i < half; ++i) {
          float const c = cos.row(t)[i];
          float const s = sin.row(t)[i];
          float const a0 = a[i];
          a[i] = a0 * c - b[i] * s;
          b[i] = b[i] * c + a0 * s;
        }
      }
  });
}

}  // namespace expertmesh

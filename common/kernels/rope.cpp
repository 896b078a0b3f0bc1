#include "common/kernels/rope.h"

#include "common/base/check.h"
#include "common/kernels/device.h"

namespace expertmesh {
namespace {

void rotate(float& a, float& b, float cos, float sin) {
  float const a0 = a;
  a = a0 * cos - b * sin;
  b = b * cos + a0 * sin;
}

}  // namespace

void apply_rope(Exec const& exec, MatrixView<float> x, RopeHeads const& heads, MatrixView<float const> cos,
                MatrixView<float const> sin) {
  std::size_t const half = cos.cols;
  EM_CHECK(x.cols == heads.num_heads * heads.head_dim && heads.first + 2 * half <= heads.head_dim &&
               cos.rows == x.rows && sin.rows == x.rows && sin.cols == half,
           "x [" << x.rows << "," << x.cols << "], " << heads.num_heads << " heads of " << heads.head_dim << ", 2 x "
                 << half << " elements from " << heads.first << " on");
  if (Device* device = exec.device()) return device->apply_rope(x, heads, cos, sin);
  exec.pool().parallel_for(x.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) {
      float const* c = cos.row(t);
      float const* s = sin.row(t);
      for (std::size_t h = 0; h < heads.num_heads; ++h) {
        float* e = x.row(t) + h * heads.head_dim + heads.first;
        if (heads.interleaved)
          for (std::size_t i = 0; i < half; ++i) rotate(e[2 * i], e[2 * i + 1], c[i], s[i]);
        else
          for (std::size_t i = 0; i < half; ++i) rotate(e[i], e[half + i], c[i], s[i]);
      }
    }
  });
}

}  // namespace expertmesh
